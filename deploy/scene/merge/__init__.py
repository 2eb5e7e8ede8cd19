"""Merge the detections of overlapping tiles."""

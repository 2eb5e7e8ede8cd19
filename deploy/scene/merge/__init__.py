"""Merging of detections from overlapping tiles."""

"""Batch runs over many scenes, on one engine or on a Ray cluster."""

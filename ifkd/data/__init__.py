"""Labeled images: reading, making, evaluating."""

"""Labelled images: reading, making, evaluating."""

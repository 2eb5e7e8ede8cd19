"""Rows of tiles through an engine, resumable."""

"""Comparison of engine files with the torch reference."""

"""Procedural imagery with labels: ships seen by an optical sensor, and aircraft seen by a radar."""

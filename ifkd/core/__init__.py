"""Foundations of all packages: errors, files, configuration, boxes, tiles. Imports no torch."""

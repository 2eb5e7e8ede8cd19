"""Scenes as tiles: rasters, georeferences, areas of interest."""

"""Read scenes as tiles: scene lists, rasters, georeferences, areas of interest."""

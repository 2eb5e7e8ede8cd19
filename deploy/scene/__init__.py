"""From a raster to objects on the map: reading, tiling, merging, writing."""

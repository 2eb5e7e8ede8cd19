"""Read rasters and image files."""

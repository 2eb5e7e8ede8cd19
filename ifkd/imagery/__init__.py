"""Image files and rasters as uint8 RGB arrays. Imports no torch."""

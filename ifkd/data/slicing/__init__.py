"""Cut large labeled images into tiles for training."""

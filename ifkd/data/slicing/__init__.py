"""Large images become tiles for training, whose labels know where they came from."""

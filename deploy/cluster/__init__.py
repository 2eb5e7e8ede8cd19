"""Many scenes on many engines, with Ray."""

"""Engines built by TensorRT or TensorRT-RTX."""

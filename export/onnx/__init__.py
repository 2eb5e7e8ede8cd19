"""A trained detector as an ONNX file."""

"""ONNX files: their precision, conversion to FP16, and ONNX Runtime sessions."""

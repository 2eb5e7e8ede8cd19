"""Build time: a checkpoint becomes a bundle of ONNX files and engines."""

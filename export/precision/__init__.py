"""FP16 models and the precision of the layers in an ONNX file."""

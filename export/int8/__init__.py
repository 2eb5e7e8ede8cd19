"""INT8 quantization: calibration, sensitivity, and the decision whether to ship."""

"""INT8 quantization: calibration, sensitivity analysis, benchmark and decision."""

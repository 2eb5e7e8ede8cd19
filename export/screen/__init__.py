"""Export of a screen into a bundle: its ONNX files, their parity, and a threshold with a bound on what it loses."""

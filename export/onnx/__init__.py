"""Detectors in their deployed form, and their export to ONNX."""

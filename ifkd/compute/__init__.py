"""Devices and data-parallel processes."""

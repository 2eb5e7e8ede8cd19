"""Optical imagery of imaginary coasts with ships."""

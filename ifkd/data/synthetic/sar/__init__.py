"""Imaginary airfields as a radar sees them: aircraft of several types, speckle, layover."""

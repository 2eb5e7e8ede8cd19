"""Labeled data sets: reading, checking, tiling, generating and evaluating."""

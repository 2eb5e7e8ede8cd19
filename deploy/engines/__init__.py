"""Engines, one module for each runtime."""

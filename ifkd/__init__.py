"""Training and knowledge distillation of ship and aircraft detectors."""

__version__ = "0.1.0"

"""Train time: detectors of ships and aircraft, and the distillation of light ones from accurate ones."""

__version__ = "0.1.0"

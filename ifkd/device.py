"""Where networks compute."""

from dataclasses import replace

import torch

from ifkd.detectors import Targets


def best_device() -> torch.device:
    """Return the current CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def move_targets(targets: list[Targets], device: torch.device) -> list[Targets]:
    """Return targets whose tensors lie on `device`."""
    return [
        replace(
            target,
            boxes=target.boxes.to(device),
            labels=target.labels.to(device),
            ignored=target.ignored.to(device),
        )
        for target in targets
    ]

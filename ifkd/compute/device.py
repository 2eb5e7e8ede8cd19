"""Choice of devices."""

import os

import torch


def best_device() -> torch.device:
    """Return the current CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_groups(size: int) -> list[str]:
    """Return this machine's GPUs in groups of `size`, as values of CUDA_VISIBLE_DEVICES; a remainder is left out."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return [",".join(names[start : start + size]) for start in range(0, len(names) - size + 1, size)]

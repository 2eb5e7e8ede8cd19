"""Where networks compute."""

import os

import torch


def best_device() -> torch.device:
    """Return the current CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_groups(size: int) -> list[str]:
    """Return this machine's GPUs in groups of `size`, each as CUDA_VISIBLE_DEVICES names it; too few give no group."""
    count = torch.cuda.device_count()
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = told.split(",")[:count] if told else [str(number) for number in range(count)]
    return [",".join(names[start : start + size]) for start in range(0, len(names) - size + 1, size)]

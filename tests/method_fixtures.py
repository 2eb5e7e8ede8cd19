"""Small pyramids, targets and methods for tests of distillation methods."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods import Method, NetworkPair, build_method
from ifkd.models import Detector, DetectorOutput, Targets, build_detector
from ifkd.recipe import DistillationOptions

BASELINES = ("fitnet", "at", "fkd", "fgd", "frs", "arsd", "insdist", "pkd", "cwd", "crosskd")
"""The methods that IFKD is compared with."""
FAMILIES: tuple[recipe.Family, ...] = ("retinanet", "faster_rcnn")
HEIGHT, WIDTH, CHANNELS = 96, 160, 16
"""Size of the images, pixels, and channels of the pyramids."""
BOXES = ((10.0, 12.0, 70.0, 60.0), (30.0, 20.0, 90.0, 80.0), (100.0, 8.0, 150.0, 30.0))
"""Two overlapping boxes and a separate one."""


def cases() -> list[tuple[str, recipe.Family]]:
    """Return every method with every detector family that it supports."""
    return [(n, family) for n in BASELINES for family in FAMILIES if (n, family) != ("crosskd", "faster_rcnn")]


def detectors(family: recipe.Family) -> tuple[Detector, Detector]:
    """Return a student and a teacher with different weights in eval mode."""
    return copy.deepcopy(_built_detectors(family))


@cache
def _built_detectors(family: recipe.Family) -> tuple[Detector, Detector]:
    built = []
    for seed, backbone in enumerate(("mobilenet_v2", "resnet18")):
        config = recipe.DetectorOptions.model_validate(
            {"family": family, "backbone": backbone, "channels": CHANNELS, "head_init": "kaiming", "box_head_width": 8}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(build_detector(config, 2).eval())
    return built[0], built[1]


def options(name: str, **values: Any) -> Any:
    """Return a method's options."""
    training = recipe.TrainingOptions().model_dump()
    distillation = DistillationOptions.model_validate({"training": training, "method": {"name": name, **values}})
    return distillation.method


def method(name: str, family: recipe.Family, *, pair: tuple[Detector, Detector] | None = None, **values: Any) -> Method:
    """Return a seeded method in training mode, by default with the detectors of `detectors(family)`."""
    networks = NetworkPair(CHANNELS, CHANNELS, recipe.LEVELS[family], (1.0,) * 5, detectors=pair or detectors(family))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return build_method(options(name, **values), networks)


def with_identity(built: Method) -> Method:
    """Set the method's convolutions and linear layers of equal input and output width to the identity."""
    for part in built.modules():
        if isinstance(part, nn.Conv2d) and part.in_channels == part.out_channels:
            nn.init.dirac_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.eye_(part.weight)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    return built


def output(family: recipe.Family, seed: int, *, images: int = 2, leaf: bool = False) -> DetectorOutput:
    """Return random outputs of a detector; with `leaf` the maps require gradients."""
    source = torch.Generator().manual_seed(seed)
    per_cell, classes = (9, 2) if family == "retinanet" else (3, 1)

    def maps(channels: int, deviation: float = 1.0) -> tuple[Tensor, ...]:
        strides = [2 ** int(level[1:]) for level in recipe.LEVELS[family]]
        levels = [
            deviation * torch.randn(images, channels, -(-HEIGHT // stride), -(-WIDTH // stride), generator=source)
            for stride in strides
        ]
        return tuple(level.requires_grad_(leaf) for level in levels)

    return DetectorOutput(maps(CHANNELS), maps(per_cell * classes, 2.0), maps(per_cell * 4, 0.2))


def targets(*images: tuple[tuple[float, float, float, float], ...]) -> list[Targets]:
    """Return the targets of images with the given boxes, of two alternating classes."""
    return [
        Targets(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)) % 2, torch.zeros(0, 4)) for boxes in images
    ]


def make_batch(
    student: DetectorOutput, teacher: DetectorOutput, objects: list[Targets] | None = None
) -> DistillationBatch:
    """Return the batch of a late step; by default an image with three objects and one with none."""
    return DistillationBatch(student, teacher, None, targets(BOXES, ()) if objects is None else objects, 10_000)

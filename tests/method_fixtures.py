"""Small pyramids, targets and methods, for the tests of distillation methods."""

from typing import Any

import torch
from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods import Method, NetworkPair, build_method
from ifkd.models import Detector, DetectorOutput, Targets, build_detector
from ifkd.recipe import DistillationOptions

RIVALS = ("fitnet", "at", "fkd", "fgd", "frs", "arsd", "insdist", "pkd", "cwd", "crosskd")
"""The methods that IFKD is compared with."""
FAMILIES: tuple[recipe.Family, ...] = ("retinanet", "faster_rcnn")
HEIGHT, WIDTH, CHANNELS = 96, 160, 16
"""Of the images, pixels, and of the pyramids."""
BOXES = ((10.0, 12.0, 70.0, 60.0), (30.0, 20.0, 90.0, 80.0), (100.0, 8.0, 150.0, 30.0))
"""Two that overlap, and one apart."""


def cases() -> list[tuple[str, recipe.Family]]:
    """Return every method with every family it is for."""
    return [(name, family) for name in RIVALS for family in FAMILIES if (name, family) != ("crosskd", "faster_rcnn")]


def detectors(family: recipe.Family) -> tuple[Detector, Detector]:
    """Return a student and a teacher with weights of their own, in eval mode."""
    made = []
    for seed, backbone in enumerate(("mobilenet_v2", "resnet18")):
        config = recipe.DetectorOptions.model_validate(
            {"family": family, "backbone": backbone, "channels": CHANNELS, "head_init": "kaiming", "box_head_width": 8}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made.append(build_detector(config, 2).eval())
    return made[0], made[1]


def options(name: str, **values: Any) -> Any:
    """Return a method's options."""
    training = recipe.TrainingOptions().model_dump()
    made = DistillationOptions.model_validate({"training": training, "method": {"name": name, **values}})
    return made.method


def method(
    name: str, family: recipe.Family, *, between: tuple[Detector, Detector] | None = None, **values: Any
) -> Method:
    """Return a seeded method in training mode; every adapter passes its input on as it is, when widths allow."""
    student = NetworkPair(CHANNELS, CHANNELS, recipe.LEVELS[family], (1.0,) * 5, detectors=between or detectors(family))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return build_method(options(name, **values), student)


def with_identity(built: Method) -> Method:
    """Return a method whose convolutions and linear layers between two widths of a kind pass their input on."""
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


def output(family: recipe.Family, seed: int, *, batch: int = 2, leaf: bool = False) -> DetectorOutput:
    """Return a random forward, whose maps collect gradients when they are leaves."""
    source = torch.Generator().manual_seed(seed)
    per_cell, classes = (9, 2) if family == "retinanet" else (3, 1)

    def maps(channels: int, spread: float = 1.0) -> tuple[Tensor, ...]:
        strides = [2 ** int(level[1:]) for level in recipe.LEVELS[family]]
        made = [
            spread * torch.randn(batch, channels, -(-HEIGHT // stride), -(-WIDTH // stride), generator=source)
            for stride in strides
        ]
        return tuple(one.requires_grad_(leaf) for one in made)

    return DetectorOutput(maps(CHANNELS), maps(per_cell * classes, 2.0), maps(per_cell * 4, 0.2))


def targets(*images: tuple[tuple[float, float, float, float], ...]) -> list[Targets]:
    """Return the targets of images with these boxes, of two classes in turn."""
    return [
        Targets(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)) % 2, torch.zeros(0, 4)) for boxes in images
    ]


def views(student: DetectorOutput, teacher: DetectorOutput, seen: list[Targets] | None = None) -> DistillationBatch:
    """Return a late step's views; by default of one image with three objects and one with none."""
    return DistillationBatch(student, teacher, None, targets(BOXES, ()) if seen is None else seen, 10_000)

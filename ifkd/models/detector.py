"""What every detector is: one forward gives pyramid, logits and box deltas, so that nothing runs twice."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.models.pretrained import LoadReport

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet's statistics on 0-255, which torchvision's weights and MobileSAM both expect."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectorOutput:
    """One forward of a detector on a batch, level by level, finest first."""

    pyramid: tuple[Float[Tensor, "batch channels _ _"], ...]
    """FPN maps, the tensors that enter the head."""
    logits: tuple[Float[Tensor, "batch classes_by_anchor _ _"], ...]
    """Dense classification logits before the sigmoid; channel a·K + k is anchor a, class k."""
    deltas: tuple[Float[Tensor, "batch four_by_anchor _ _"], ...]
    """Box regression, four values for each anchor."""
    sampled: list["SampledRois"] = field(default_factory=list)
    """What `task_losses` looked at more closely, once it has: one entry of a two-stage detector, else none."""


@dataclass(frozen=True, slots=True, eq=False)
class SampledRois:
    """The regions a second stage was trained on in one step, and what it said of them."""

    boxes: list[Float[Tensor, "_ 4"]]
    """By image, pixels."""
    class_logits: Float[Tensor, "rois classes_and_background"]
    """Of all images' regions in order, before the softmax; background comes first."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """The objects of one training image."""

    boxes: Float[Tensor, "objects 4"]
    """x1, y1, x2, y2, pixels."""
    labels: Int64[Tensor, " objects"]
    ignored: Float[Tensor, "regions 4"]
    """Regions that are neither object nor background."""

    def to(self, device: torch.device) -> "Targets":
        """Return the same targets on `device`."""
        return Targets(self.boxes.to(device), self.labels.to(device), self.ignored.to(device))


class Detector(nn.Module, ABC):
    """A detector with a feature pyramid. Parameter names are torchvision's."""

    config: recipe.DetectorOptions
    num_classes: int
    strides: tuple[int, ...]
    loaded: tuple[LoadReport, ...] = ()
    """What of published weights it began with."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> DetectorOutput:
        """Return pyramid and head outputs of normalized images whose sides are multiples of 32."""

    @abstractmethod
    def anchors(self, output: DetectorOutput) -> list[Float[Tensor, "_ 4"]]:
        """Return the anchors of each level of a forward, pixels; ordered by row, column and anchor of a cell."""

    @abstractmethod
    def matches(self, anchors: Float[Tensor, "anchors 4"], target: Targets) -> Int64[Tensor, " anchors"]:
        """Return the row of the object that each anchor learns from, or a code of `boxes.assign`."""

    @abstractmethod
    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the named detection losses (scalars) of a batch."""

    @abstractmethod
    def candidates(
        self, output: DetectorOutput, *, size: tuple[int, int], per_level: int
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return boxes (pixels), scores and labels: the best `per_level` box-class pairs of each of a few groups.

        A one-stage detector's groups are its levels; a two-stage detector has one, its proposals. The number of
        candidates depends on `size` (height, width) and `per_level` alone.
        """

    @abstractmethod
    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:
        """Return, in the order of `candidates`, each group's size and whether pairs were cut off to reach it."""


def normalize(tiles: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return uint8 RGB images as float32 with ImageNet's mean 0 and deviation 1."""
    mean = torch.tensor(MEAN_RGB, device=tiles.device).view(1, 3, 1, 1)
    std = torch.tensor(STD_RGB, device=tiles.device).view(1, 3, 1, 1)
    return (tiles.to(torch.float32) - mean) / std


def init_towers(*towers: nn.Module) -> None:
    """Give the convolutions before a ReLU weights that keep the signal's size (He et al. 2015)."""
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

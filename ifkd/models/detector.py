"""The interface of detectors: one forward returns pyramid, logits and box deltas, so that nothing is computed twice."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.models.anchors import anchors_of_level, assign
from ifkd.models.pretrained import LoadReport

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet's statistics on 0-255, which torchvision's weights and MobileSAM both expect."""

FeatureMap: TypeAlias = Float[Tensor, "batch channels height width"]
LogitMap: TypeAlias = Float[Tensor, "batch classes height width"]
LocationMap: TypeAlias = Float[Tensor, "batch 1 height width"]
"""One value for each location."""
Images: TypeAlias = Float[Tensor, "batch 3 height width"]
"""Images normalized with ImageNet's statistics."""
Scalar: TypeAlias = Float[Tensor, ""]
CandidateTensors: TypeAlias = tuple[Tensor, ...]
"""The fields of `Candidates`: boxes, scores, labels and, of an oriented detector, oriented boxes."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectorOutput:
    """Output of a detector's forward for a batch, one map for each level, finest first."""

    pyramid: tuple[Float[Tensor, "batch channels _ _"], ...]
    """FPN maps, the input of the head."""
    logits: tuple[Float[Tensor, "batch classes_by_anchor _ _"], ...]
    """Dense classification logits before the sigmoid; channel a·K + k is anchor a, class k."""
    deltas: tuple[Float[Tensor, "batch values_by_anchor _ _"], ...]
    """Box regression, four values for each anchor; five in an oriented detector (see `ifkd.models.oriented_deltas`)."""
    sampled: list["SampledRois"] = field(default_factory=list)
    """RoIs that `task_losses` sampled: one entry for a two-stage detector, else empty."""

    def image_size(self, finest_stride: int) -> tuple[int, int]:
        """Return the (height, width) of the images, whose sides are multiples of 32."""
        height, width = self.pyramid[0].shape[2:]
        return height * finest_stride, width * finest_stride


@dataclass(frozen=True, slots=True, eq=False)
class SampledRois:
    """RoIs on which the second stage was trained in one step, and its class logits."""

    boxes: list[Float[Tensor, "_ 4"]]
    """By image, pixels."""
    class_logits: Float[Tensor, "rois classes_and_background"]
    """Logits before the softmax of the RoIs of all images in order; background comes first."""


SecondStage = Callable[[DetectorOutput, list[Tensor]], Tensor]
"""A detector's output and each image's RoIs -> the RoIs' class logits; background comes first."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """The objects of one training image."""

    boxes: Float[Tensor, "objects 4"]
    """x1, y1, x2, y2, pixels."""
    labels: Int64[Tensor, " objects"]
    ignored: Float[Tensor, "regions 4"]
    """Regions that are neither object nor background."""
    oriented: Float[Tensor, "objects 5"] | None = None
    """Oriented boxes, in the form of `ifkd.core.oriented_boxes`: pixels and degrees; for an oriented detector only."""

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on `device`."""
        oriented = None if self.oriented is None else self.oriented.to(device)
        return Targets(self.boxes.to(device), self.labels.to(device), self.ignored.to(device), oriented)


class TaskNetwork(nn.Module, ABC):
    """A network that can be trained: its forward has an output for normalized images, which has losses."""

    @abstractmethod
    def task_losses(self, output: Any, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the named losses (scalars) of a batch."""


class Detector(TaskNetwork):
    """A detector with a feature pyramid. Parameter names are torchvision's."""

    config: recipe.DetectorOptions
    num_classes: int
    strides: tuple[int, ...]
    """By level, finest first, pixels."""
    anchor_scales: tuple[float, ...]
    """Sides of the square anchors of a cell, in strides."""
    pos_iou: float
    neg_iou: float
    min_pos_iou: float
    """Thresholds of `assign` for anchors."""
    load_reports: tuple[LoadReport, ...] = ()
    """Pretrained weights that were loaded."""

    @abstractmethod
    def forward(self, images: Images) -> DetectorOutput:
        """Return pyramid and head outputs of normalized images whose sides are multiples of 32."""

    def anchors(self, output: DetectorOutput) -> list[Float[Tensor, "_ 4"]]:
        """Return the anchors of each level (see `anchors_of_level`), pixels."""
        return [
            anchors_of_level(stride, (logits.shape[2], logits.shape[3]), logits.device, scales=self.anchor_scales)
            for stride, logits in zip(self.strides, output.logits, strict=True)
        ]

    def assign_anchors(self, anchors: Float[Tensor, "anchors 4"], target: Targets) -> Int64[Tensor, " anchors"]:
        """Return the index of each anchor's object, or a code of `assign`."""
        objects, ignored = target.boxes, target.ignored
        return assign(
            anchors, objects, ignored, pos_iou=self.pos_iou, neg_iou=self.neg_iou, min_pos_iou=self.min_pos_iou
        )

    @abstractmethod
    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the named detection losses (scalars) of a batch."""

    @abstractmethod
    def candidates(self, output: DetectorOutput, *, size: tuple[int, int], per_level: int) -> CandidateTensors:
        """Return boxes (pixels), scores and labels of the best `per_level` box-class pairs of each group.

        The groups of a one-stage detector are its levels; a two-stage detector has one group, its proposals. The
        number of candidates depends only on `size` (height, width) and `per_level`.
        """

    @abstractmethod
    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:
        """Return the size of each group of `candidates`, and whether it had more pairs than that."""


def normalize(tiles: UInt8[Tensor, "batch 3 height width"]) -> Images:
    """Return uint8 RGB images as float32, normalized with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(rgb, device=tiles.device).view(1, 3, 1, 1) for rgb in (MEAN_RGB, STD_RGB))
    return (tiles.to(torch.float32) - mean) / std


def init_towers(*towers: nn.Module) -> None:
    """Initialize convolutions that precede a ReLU (He et al. 2015)."""
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

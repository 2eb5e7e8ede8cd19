"""The frozen part of a distillation: teacher and MobileSAM, and what they say of a batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation.cache_spec import CacheSpec
from ifkd.distillation.distillation_batch import TeacherOutputs
from ifkd.distillation.output_cache import OutputCache, keys_of
from ifkd.models import Detector, DetectorOutput
from ifkd.models.mobile_sam.encoder import (
    EMBEDDING_CHANNELS,
    STRIDE,
    InputSize,
    MobileSamEncoder,
    build_mobile_sam,
    check_input_px,
    input_size,
)
from ifkd.models.mobile_sam.masks import MASK_STRIDE, MobileSamMasks, build_mobile_sam_masks


class FrozenModels(nn.Module):
    """The frozen part of a distillation: teacher and MobileSAM. Neither ever learns or changes its statistics."""

    def __init__(
        self,
        teacher: Detector,
        disturbance: recipe.EdeOptions | None = None,
        *,
        keeping: CacheSpec | None = None,
        keep_teacher: bool = False,
    ) -> None:
        """Take a trained teacher, and build MobileSAM when `disturbance` is wanted.

        Args:
            teacher: The trained detector.
            disturbance: EDE's settings; None leaves MobileSAM out.
            keeping: Where answers are kept: MobileSAM's when `disturbance.cache` says so.
            keep_teacher: Keep the teacher's answers as well.

        Raises:
            CheckpointError: MobileSAM's weights are absent.
            OutputError: A cache cannot be written, or was made of something else.
        """
        super().__init__()
        self.teacher = teacher.requires_grad_(requires_grad=False).eval()
        self.sam: MobileSamEncoder | MobileSamMasks | None = None
        self._input_px: InputSize = "native"
        self._teacher_memory: OutputCache | None = None
        self._sam_memory: OutputCache | None = None
        if disturbance is not None:
            check_input_px(disturbance.input_px)
            build = build_mobile_sam if disturbance.source == "embedding" else build_mobile_sam_masks
            self.sam = build(disturbance.weights)
            self._input_px = disturbance.input_px
            if disturbance.cache and keeping is not None:
                self._sam_memory = self._open_sam_memory(self.sam, keeping)
        if keep_teacher and keeping is not None:
            shapes = [tuple(part.shape[1:]) for part in self._teacher_maps(self._blank(keeping))]
            self._teacher_memory = OutputCache("teacher", self.teacher, shapes, keeping)

    def train(self, mode: bool = True) -> "FrozenModels":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode, whatever is asked."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> TeacherOutputs:
        """Return what teacher and MobileSAM say of a batch.

        Args:
            images: The batch, normalized, as the student takes it.
            pixels: The same images before normalization; their digests are the keys under which answers are kept.

        Raises:
            OutputError: A cache cannot be written, or was made of something else.
        """
        keys = keys_of(pixels) if self._teacher_memory or self._sam_memory else []
        return TeacherOutputs(self._taught(images, keys), self._embedded(images, keys))

    def _taught(self, images: Tensor, keys: list[bytes]) -> DetectorOutput:
        if self._teacher_memory is None:
            output: DetectorOutput = self.teacher(images)
            return output
        maps = self._teacher_memory.answers(keys, lambda rows: self._teacher_maps(images[rows]), images.device)
        levels = len(self.teacher.strides)
        return DetectorOutput(tuple(maps[:levels]), tuple(maps[levels : 2 * levels]), tuple(maps[2 * levels :]))

    def _embedded(self, images: Tensor, keys: list[bytes]) -> Tensor | None:
        if self.sam is None:
            return None
        if self._sam_memory is None:
            return self._sam_maps(images)
        return self._sam_memory.answers(keys, lambda rows: [self._sam_maps(images[rows])], images.device)[0]

    @torch.no_grad()
    def _teacher_maps(self, images: Tensor) -> list[Tensor]:
        output: DetectorOutput = self.teacher(images)
        return [*output.pyramid, *output.logits, *output.deltas]

    def _sam_maps(self, images: Tensor) -> Tensor:
        assert self.sam is not None
        maps: Tensor = self.sam(images, input_px=self._input_px)
        return maps

    def _blank(self, keeping: CacheSpec) -> Tensor:
        side = keeping.tile_px
        return torch.zeros(1, 3, side, side, device=next(self.teacher.parameters()).device)

    def _open_sam_memory(self, sam: MobileSamEncoder | MobileSamMasks, keeping: CacheSpec) -> OutputCache:
        name, channels, stride = (
            ("mobile_sam", EMBEDDING_CHANNELS, STRIDE)
            if isinstance(sam, MobileSamEncoder)
            else ("mobile_sam_masks", 1, MASK_STRIDE)
        )
        height, width = input_size((keeping.tile_px, keeping.tile_px), self._input_px)
        shape = (channels, -(-height // stride), -(-width // stride))
        return OutputCache(f"{name}_{self._input_px}", sam, [shape], keeping)


@torch.no_grad()
def measure_feature_rms(
    teacher: Detector, batches: Sequence[Float[Tensor, "batch 3 height width"]]
) -> tuple[float, ...]:
    """Return the root mean square of the teacher's features at each level over normalized `batches`."""
    sums = [0.0] * len(teacher.strides)
    for images in batches:
        for level, features in enumerate(teacher(images).pyramid):
            sums[level] += float(features.float().square().mean())
    return tuple((total / max(1, len(batches))) ** 0.5 for total in sums)

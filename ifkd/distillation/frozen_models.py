"""The frozen models of a distillation: teacher and MobileSAM, with optional caches of their outputs."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation.cache_spec import CacheSpec
from ifkd.distillation.distillation_batch import TeacherOutputs
from ifkd.distillation.output_cache import OutputCache, tile_keys
from ifkd.models import Detector, DetectorOutput
from ifkd.models.mobile_sam.encoder import (
    EMBEDDING_CHANNELS,
    STRIDE,
    InputSize,
    MobileSamEncoder,
    build_mobile_sam,
    resized_size,
)
from ifkd.models.mobile_sam.masks import MASK_STRIDE, MobileSamMasks, build_mobile_sam_masks
from ifkd.models.shapes import Images


class FrozenModels(nn.Module):
    """Teacher and MobileSAM. Always in eval mode, without gradient."""

    def __init__(
        self,
        teacher: Detector,
        ede: recipe.EdeOptions | None = None,
        *,
        cache_spec: CacheSpec | None = None,
        cache_teacher: bool = False,
    ) -> None:
        """Freeze the teacher, build MobileSAM and open the caches.

        Args:
            teacher: The trained detector.
            ede: EDE's options; None leaves MobileSAM out.
            cache_spec: Location of the caches; MobileSAM's outputs are cached if `ede.cache` is set.
            cache_teacher: Cache the teacher's outputs as well.

        Raises:
            CheckpointError: MobileSAM's weights are missing.
            OutputError: A cache cannot be written, or depends on other networks or images.
        """
        super().__init__()
        self.teacher = teacher.requires_grad_(requires_grad=False).eval()
        self.sam: MobileSamEncoder | MobileSamMasks | None = None
        self._input_px: InputSize = "native"
        self._teacher_cache: OutputCache | None = None
        self._sam_cache: OutputCache | None = None
        if ede is not None:
            build = build_mobile_sam if ede.source == "embedding" else build_mobile_sam_masks
            self.sam = build(ede.weights)
            self._input_px = ede.input_px
            if ede.cache and cache_spec is not None:
                self._sam_cache = self._open_sam_cache(self.sam, cache_spec)
        if cache_teacher and cache_spec is not None:
            device, side = next(teacher.parameters()).device, cache_spec.tile_px
            maps = self._run_teacher(torch.zeros(1, 3, side, side, device=device))
            self._teacher_cache = OutputCache("teacher", teacher, [part.shape[1:] for part in maps], cache_spec)

    def train(self, mode: bool = True) -> "FrozenModels":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Images, pixels: UInt8[Tensor, "batch 3 height width"]) -> TeacherOutputs:
        """Return the outputs of teacher and MobileSAM for a batch.

        Args:
            images: The normalized batch, the student's input.
            pixels: The images before normalization; their digests are the keys of the caches.

        Raises:
            OutputError: A cache cannot be written.
        """
        keys = tile_keys(pixels) if self._teacher_cache or self._sam_cache else []
        maps = _get_or_compute(self._teacher_cache, self._run_teacher, images, keys)
        n = len(self.teacher.strides)
        output = DetectorOutput(tuple(maps[:n]), tuple(maps[n : 2 * n]), tuple(maps[2 * n :]))
        if self.sam is None:
            return TeacherOutputs(output, None)
        return TeacherOutputs(output, _get_or_compute(self._sam_cache, self._run_sam, images, keys)[0])

    @torch.no_grad()
    def _run_teacher(self, images: Tensor) -> list[Tensor]:
        output: DetectorOutput = self.teacher(images)
        return [*output.pyramid, *output.logits, *output.deltas]

    def _run_sam(self, images: Tensor) -> list[Tensor]:
        assert self.sam is not None
        return [self.sam(images, input_px=self._input_px)]

    def _open_sam_cache(self, sam: MobileSamEncoder | MobileSamMasks, cache_spec: CacheSpec) -> OutputCache:
        name, channels, stride = (
            ("mobile_sam", EMBEDDING_CHANNELS, STRIDE)
            if isinstance(sam, MobileSamEncoder)
            else ("mobile_sam_masks", 1, MASK_STRIDE)
        )
        height, width = resized_size((cache_spec.tile_px, cache_spec.tile_px), self._input_px)
        shape = (channels, -(-height // stride), -(-width // stride))
        return OutputCache(f"{name}_{self._input_px}", sam, [shape], cache_spec)


def _get_or_compute(
    cache: OutputCache | None, run: Callable[[Tensor], list[Tensor]], images: Tensor, keys: list[bytes]
) -> list[Tensor]:
    if cache is None:
        return run(images)
    return cache.get_or_compute(keys, lambda rows: run(images[rows]), images.device)


@torch.no_grad()
def measure_feature_rms(teacher: Detector, batches: Sequence[Images]) -> tuple[float, ...]:
    """Return the root mean square of the teacher's features at each level over normalized `batches`."""
    sums = [0.0] * len(teacher.strides)
    for images in batches:
        for level, features in enumerate(teacher(images).pyramid):
            sums[level] += float(features.float().square().mean())
    return tuple((total / max(1, len(batches))) ** 0.5 for total in sums)

"""The frozen models of a distillation, teacher and MobileSAM, with optional caches; and the input of a method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation.output_cache import CacheSpec, OutputCache, tile_keys
from ifkd.models.detector import Detector, DetectorOutput, Images, Targets
from ifkd.models.mobile_sam.encoder import InputSize, MobileSamEncoder, build_mobile_sam
from ifkd.models.mobile_sam.masks import MobileSamMasks, build_mobile_sam_masks

Run = Callable[[Tensor], list[Tensor]]
"""Normalized images -> the output maps of a frozen network."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherOutputs:
    """Outputs of the frozen models for a batch, without gradient."""

    teacher: DetectorOutput
    embedding: Float[Tensor, "batch _ rows columns"] | None
    """MobileSAM's embedding (256 channels, stride 16) or mask logits (1 channel, stride 4); None if it is not used."""


@dataclass(frozen=True, slots=True, eq=False)
class DistillationBatch:
    """Input of a distillation method in one training step; teacher and embedding are as in `TeacherOutputs`."""

    student: DetectorOutput
    teacher: DetectorOutput
    embedding: Float[Tensor, "batch _ rows columns"] | None
    targets: list[Targets]
    iteration: int
    """Number of completed steps."""


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
        """Freeze the teacher, build MobileSAM unless `ede` is None, and open the caches.

        With `cache_spec`, the teacher's outputs are cached if `cache_teacher` is set, MobileSAM's if `ede.cache` is.

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
            self._input_px = ede.input_px
            masks = ede.source == "mask"
            self.sam = build_mobile_sam_masks(ede.weights) if masks else build_mobile_sam(ede.weights)
            if ede.cache and cache_spec is not None:
                name = f"mobile_sam{'_masks' if masks else ''}_{ede.input_px}"
                self._sam_cache = _open_cache(name, self.sam, self._run_sam, cache_spec)
        if cache_teacher and cache_spec is not None:
            self._teacher_cache = _open_cache("teacher", teacher, self._run_teacher, cache_spec)

    def train(self, mode: bool = True) -> "FrozenModels":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Images, pixels: UInt8[Tensor, "batch 3 height width"]) -> TeacherOutputs:
        """Return the outputs for a normalized batch; digests of its `pixels` are the keys of the caches.

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


def _open_cache(name: str, network: nn.Module, run: Run, spec: CacheSpec) -> OutputCache:
    """Open a network's cache; the shapes of its maps are those for an empty tile."""
    tile = torch.zeros(1, 3, spec.tile_px, spec.tile_px, device=next(network.parameters()).device)
    return OutputCache(name, network, [part.shape[1:] for part in run(tile)], spec)


def _get_or_compute(cache: OutputCache | None, run: Run, images: Tensor, keys: list[bytes]) -> list[Tensor]:
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

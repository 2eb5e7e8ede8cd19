"""The frozen part of a distillation: teacher and MobileSAM, and what they say of a batch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.detectors import Detector, DetectorOutput
from ifkd.knowledge.store import EmbeddingCache
from ifkd.knowledge.views import Taught
from ifkd.mobile_sam import MobileSamEncoder, build_mobile_sam, check_input_px


class Knowledge(nn.Module):
    """The frozen part of a distillation: teacher and MobileSAM. Neither ever learns or changes its statistics."""

    def __init__(self, teacher: Detector, disturbance: recipe.Disturbance | None, cache: Path | None) -> None:
        """Take a trained teacher, and build MobileSAM when `disturbance` is wanted.

        Args:
            teacher: The trained detector.
            disturbance: EDE's settings; None leaves MobileSAM out.
            cache: Folder for embeddings; used when the settings ask for it.

        Raises:
            CheckpointError: MobileSAM's weights are absent.
        """
        super().__init__()
        self.teacher = teacher.requires_grad_(requires_grad=False).eval()
        self.encoder: MobileSamEncoder | None = None
        self._input_px: int | str = "native"
        self._cache: EmbeddingCache | None = None
        if disturbance is not None:
            check_input_px(disturbance.input_px)
            self.encoder = build_mobile_sam(disturbance.weights)
            self._input_px = disturbance.input_px
            if disturbance.cache and cache is not None:
                self._cache = EmbeddingCache(cache / f"mobile_sam-{_digest(self.encoder)}-{self._input_px}")

    def train(self, mode: bool = True) -> "Knowledge":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode, whatever is asked."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Taught:
        """Return what teacher and MobileSAM say of a batch.

        Args:
            images: The batch, normalised, as the student takes it.
            pixels: The same images before normalisation; their digests are the names under which answers are kept.
        """
        teacher: DetectorOutput = self.teacher(images)
        return Taught(teacher, self._embedded(images, pixels))

    def _embedded(self, images: Tensor, pixels: Tensor) -> Tensor | None:
        if self.encoder is None:
            return None
        if self._cache is None:
            return self._encode(images)
        keys = [hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest() for image in pixels]
        absent = [row for row, key in enumerate(keys) if key not in self._cache]
        if absent:
            fresh = self._encode(images[absent])
            for row, embedding in zip(absent, fresh, strict=True):
                self._cache.add(keys[row], embedding)
        return self._cache.read(keys).to(images.device)

    def _encode(self, images: Tensor) -> Tensor:
        assert self.encoder is not None
        embedding: Tensor = self.encoder(images, input_px=self._input_px)
        return embedding


@torch.no_grad()
def measure_feature_rms(
    teacher: Detector, batches: Sequence[Float[Tensor, "batch 3 height width"]]
) -> tuple[float, ...]:
    """Return the root mean square of the teacher's features at each level over normalised `batches`."""
    sums = [0.0] * len(teacher.strides)
    for images in batches:
        for level, features in enumerate(teacher(images).pyramid):
            sums[level] += float(features.float().square().mean())
    return tuple((total / max(1, len(batches))) ** 0.5 for total in sums)


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

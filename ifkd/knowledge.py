"""What one training batch looks like to the student, to the teacher and to MobileSAM; the frozen part and its cache."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ifkd import recipe
from ifkd.detectors import Detector, DetectorOutput, Targets
from ifkd.errors import OutputError
from ifkd.files import make_folder
from ifkd.mobile_sam import MobileSamEncoder, build_mobile_sam, check_input_px


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """One training step, as a method sees it."""

    student: DetectorOutput
    teacher: DetectorOutput
    """Without gradient."""
    embedding: Float[Tensor, "batch 256 rows columns"] | None
    """MobileSAM's, without gradient; None when the method does not ask for it."""
    targets: list[Targets]
    iteration: int
    """Steps done before this one."""


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
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> DetectorOutput:
        """Return the teacher's view of normalised images."""
        output: DetectorOutput = self.teacher(images)
        return output

    @torch.no_grad()
    def embed(
        self, images: Float[Tensor, "batch 3 height width"], pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 256 rows columns"] | None:
        """Return MobileSAM's embedding of normalised images; `pixels` are the same images before, for the cache."""
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


class EmbeddingCache:
    """Embeddings on disk in float16, one file each, named by the digest of the pixels they belong to.

    Content addressing makes it safe: another image, crop, turn or colour is another name. The folder's name
    carries the encoder's digest and its input size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)
        self._known = {path.stem for path in folder.glob("*/*.npy")}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __len__(self) -> int:
        """Return the number of embeddings."""
        return len(self._known)

    def add(self, key: str, embedding: Float[Tensor, "256 rows columns"]) -> None:
        """Keep an embedding."""
        path = self._path(key)
        make_folder(path.parent)
        temporary = path.with_suffix(".partial")
        try:
            with temporary.open("wb") as stream:
                np.save(stream, embedding.to(torch.float16).cpu().numpy())
            temporary.replace(path)
        except OSError as error:
            raise OutputError(
                f"The embedding cache {self.folder} cannot be written ({error.strerror})",
                mend="Free space, or set distillation.method.ede.cache = false.",
            ) from error
        self._known.add(key)

    def read(self, keys: Sequence[str]) -> Float[Tensor, "batch 256 rows columns"]:
        """Return the embeddings of `keys`, stacked."""
        return torch.from_numpy(np.stack([np.load(self._path(key)) for key in keys])).float()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"


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

"""What frozen networks said, kept on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ifkd.errors import OutputError
from ifkd.files import make_folder


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

"""Answers of one frozen network to tiles: looked up where they are kept, computed and kept where they are not."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ifkd.core.errors import CheckpointError
from ifkd.distillation.cache_spec import CacheSpec
from ifkd.distillation.record_store import RecordStore

Compute = Callable[[list[int]], Sequence[Tensor]]
"""Rows of a batch -> the network's output maps for them."""


class OutputCache:
    """A network's output maps for tiles, in float16 on disk.

    What is computed now is rounded as what was kept before, so that a run does not depend on how much of it was kept.
    """

    def __init__(self, name: str, network: nn.Module, shapes: Sequence[tuple[int, ...]], keeping: CacheSpec) -> None:
        """Open the store `name`, or make it.

        Args:
            name: The folder's name.
            network: Whose answers they are; the store depends on its weights.
            shapes: Shapes of its output maps for one tile.
            keeping: Where, and of what tiles.
        """
        self._name, self._shapes = name, [tuple(shape) for shape in shapes]
        self._sizes = [math.prod(shape) for shape in shapes]
        depends_on: dict[str, Any] = {
            "network": f"{name} {digest_of(network)}",
            "shapes": [list(shape) for shape in self._shapes],
            **keeping.depends_on,
        }
        self.store = RecordStore(
            keeping.folder / name,
            depends_on,
            values=sum(self._sizes),
            capacity=keeping.tiles,
            rebuild=keeping.rebuild,
        )

    def answers(self, keys: Sequence[bytes], compute: Compute, device: torch.device) -> list[Tensor]:
        """Return the maps of a batch in float32; those of absent keys are computed and kept.

        Raises:
            CheckpointError: An answer is larger than float16 holds.
            OutputError: The store cannot be written.
        """
        found = self.store.find(keys)
        absent = [row for row, record in enumerate(found) if record is None]
        if absent:
            with torch.autocast(device.type, enabled=False):
                fresh = self._packed(compute(absent))
            self.store.add([keys[row] for row in absent], fresh)
            for row, record in zip(absent, fresh, strict=True):
                found[row] = record
        batch = torch.from_numpy(np.stack([record for record in found if record is not None])).to(device)
        return [
            part.float().view(len(keys), *shape)
            for part, shape in zip(torch.split(batch, self._sizes, dim=1), self._shapes, strict=True)
        ]

    def _packed(self, maps: Sequence[Tensor]) -> Any:
        records = torch.cat([part.flatten(1) for part in maps], dim=1).to(torch.float16)
        if not records.isfinite().all():
            raise CheckpointError(
                f"Answers of {self._name} are larger than float16 holds, so they cannot be kept",
                hint="Train without the cache: distillation.cache_teacher = false, "
                "distillation.method.ede.cache = false.",
            )
        return records.cpu().numpy()


def keys_of(pixels: UInt8[Tensor, "batch 3 height width"]) -> list[bytes]:
    """Return the SHA-256 of each tile's pixels: another image, crop, turn or color is another key."""
    return [hashlib.sha256(tile.tobytes()).digest() for tile in pixels.contiguous().cpu().numpy()]


def digest_of(module: nn.Module) -> str:
    """Return 16 hexadecimal digits of a network's weights and statistics."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

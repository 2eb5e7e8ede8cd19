"""Cache of a frozen network's outputs for tiles."""

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
    """Output maps of a network for tiles, on disk in float16.

    New outputs are rounded to float16 as well, so that results do not depend on the state of the cache.
    """

    def __init__(self, name: str, network: nn.Module, shapes: Sequence[tuple[int, ...]], spec: CacheSpec) -> None:
        """Open or create the cache.

        Args:
            name: Name of its folder.
            network: The frozen network; the cache depends on its weights.
            shapes: Shapes of its output maps for one tile.
            spec: Location and key.
        """
        self._name, self._shapes = name, [tuple(shape) for shape in shapes]
        self._sizes = [math.prod(shape) for shape in shapes]
        depends_on: dict[str, Any] = {
            "network": f"{name} {module_digest(network)}",
            "shapes": [list(shape) for shape in self._shapes],
            **spec.depends_on,
        }
        self.store = RecordStore(
            spec.folder / name, depends_on, values=sum(self._sizes), capacity=spec.max_tiles, rebuild=spec.rebuild
        )

    def get_or_compute(self, keys: Sequence[bytes], compute: Compute, device: torch.device) -> list[Tensor]:
        """Return the maps of a batch in float32; maps of missing keys are computed and stored.

        Raises:
            CheckpointError: An output is out of the range of float16.
            OutputError: The cache cannot be written.
        """
        records = self.store.find(keys)
        missing = [row for row, record in enumerate(records) if record is None]
        if missing:
            with torch.autocast(device.type, enabled=False):
                computed = self._to_records(compute(missing))
            self.store.add([keys[row] for row in missing], computed)
            for row, record in zip(missing, computed, strict=True):
                records[row] = record
        batch = torch.from_numpy(np.stack([record for record in records if record is not None])).to(device)
        return [
            part.float().view(len(keys), *shape)
            for part, shape in zip(torch.split(batch, self._sizes, dim=1), self._shapes, strict=True)
        ]

    def _to_records(self, maps: Sequence[Tensor]) -> Any:
        records = torch.cat([part.flatten(1) for part in maps], dim=1).to(torch.float16)
        if not records.isfinite().all():
            raise CheckpointError(
                f"Outputs of {self._name} are out of the range of float16 and cannot be cached",
                hint="Train without the cache: distillation.cache_teacher = false, "
                "distillation.method.ede.cache = false.",
            )
        return records.cpu().numpy()


def tile_keys(pixels: UInt8[Tensor, "batch 3 height width"]) -> list[bytes]:
    """Return the SHA-256 of each tile's pixels."""
    return [hashlib.sha256(tile.tobytes()).digest() for tile in pixels.contiguous().cpu().numpy()]


def module_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a network's state."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""Caches of output maps."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ifkd.core.errors import CheckpointError
from ifkd.distillation import CacheSpec
from ifkd.distillation.output_cache import OutputCache

CPU = torch.device("cpu")


def open_cache(folder: Path) -> OutputCache:
    spec = CacheSpec(folder, tile_px=64, max_tiles=8, depends_on={"images": "eight"})
    return OutputCache("network", torch.nn.Identity(), [(1, 2, 2), (3,)], spec)


def test_missing_outputs_are_computed_and_rounded_to_float16(tmp_path: Path) -> None:
    computed: list[list[int]] = []

    def compute(rows: list[int]) -> list[Tensor]:
        computed.append(rows)
        return [torch.full((len(rows), 1, 2, 2), 1 / 3), torch.tensor(rows)[:, None] + torch.zeros(3)]

    keys = [bytes([number]) * 32 for number in range(3)]
    open_cache(tmp_path).get_or_compute(keys[:1], compute, CPU)
    maps, values = open_cache(tmp_path).get_or_compute(keys, compute, CPU)
    assert computed == [[0], [1, 2]]
    assert torch.equal(maps, torch.full((3, 1, 2, 2), 1 / 3).half().float())
    assert values[:, 0].tolist() == [0.0, 1.0, 2.0]


def test_outputs_out_of_the_range_of_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="out of the range of float16"):
        open_cache(tmp_path).get_or_compute(
            [bytes(32)], lambda rows: [torch.full((len(rows), 1, 2, 2), 1e5), torch.zeros(len(rows), 3)], CPU
        )

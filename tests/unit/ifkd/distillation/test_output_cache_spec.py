"""Keys and capacities of caches: the tiles of a training run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ifkd import recipe
from ifkd.core.errors import ConfigError, OutputError
from ifkd.data.coco import read_coco
from ifkd.distillation import TileSampling, make_cache_spec
from ifkd.distillation.output_cache import OutputCache, count_distinct_tiles, tile_keys
from ifkd.imagery.contrast import ImageryOptions
from ifkd.training.dataset import TileDataset


def data(**augmentation: Any) -> recipe.DataOptions:
    base: dict[str, Any] = {"train": "t.json", "validation": "v.json", "test": "t.json", "tile_px": 64}
    return recipe.DataOptions.model_validate(base | {"augmentation": augmentation})


@pytest.mark.parametrize(
    ("flip", "turns", "size"),
    [(True, True, (48, 64)), (True, False, (64, 64)), (False, True, (40, 64)), (False, False, (64, 64))],
)
def test_the_number_of_distinct_tiles_is_that_of_training(
    tmp_path: Path, write_data_set: Callable[..., Path], flip: bool, turns: bool, size: tuple[int, int]
) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2, size=size))
    config = data(flip=flip, quarter_turns=turns)
    made = TileDataset(dataset, config, seed=0)
    seen = {key for epoch in range(60) for key in tile_keys(torch.stack([made[epoch, i].pixels for i in range(2)]))}
    assert len(seen) == count_distinct_tiles(dataset.images, config)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"scale_jitter": (0.9, 1.1)}, "scale_jitter"),
        ({"photometric": 0.2}, "photometric = 0.2"),
        ({"speckle": 0.2}, "speckle = 0.2"),
    ],
)
def test_unlimited_augmentation_is_refused(
    tmp_path: Path, write_data_set: Callable[..., Path], augmentation: dict[str, Any], message: str
) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2))
    with pytest.raises(ConfigError, match=message):
        make_cache_spec(dataset, data(**augmentation), tmp_path, rebuild=False)


def test_random_crops_are_refused(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2, size=(64, 96)))
    with pytest.raises(ConfigError, match=r"random crops, as 2 of 2 images are larger than data.tile_px = 64"):
        make_cache_spec(dataset, data(), tmp_path, rebuild=False)


def test_runs_with_one_seed_share_the_tiles_of_unlimited_augmentation(
    tmp_path: Path, write_data_set: Callable[..., Path]
) -> None:
    """Random crops and colors are the same in all runs with one seed, and so are their cached outputs."""
    dataset = read_coco(write_data_set(tmp_path, images=3, size=(64, 96)))
    config = data(photometric=0.2, scale_jitter=(0.8, 1.2))
    spec = make_cache_spec(dataset, config, tmp_path, rebuild=False, sampling=TileSampling(seed=5, epochs=4))
    runs = [
        {key for e in range(4) for key in tile_keys(torch.stack([made[e, i].pixels for i in range(3)]))}
        for made in (TileDataset(dataset, config, seed=seed) for seed in (5, 5, 6))
    ]
    assert len(runs[0]) == spec.max_tiles == 12
    assert runs[0] == runs[1]
    assert not runs[0] & runs[2]


def test_each_seed_has_its_own_cache(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2))

    def open_cache(seed: int, epochs: int, **augmentation: Any) -> OutputCache:
        sampling = TileSampling(seed, epochs)
        spec = make_cache_spec(dataset, data(**augmentation), tmp_path / "cache", rebuild=False, sampling=sampling)
        return OutputCache("teacher", torch.nn.Identity(), [(3, 64, 64)], spec)

    open_cache(1, 3), open_cache(2, 3)
    with pytest.raises(OutputError, match=r"depends on other networks or images: .*epochs was 3, is 4"):
        open_cache(1, 4)
    with pytest.raises(OutputError, match=r"depends on other networks or images: .*photometric"):
        open_cache(1, 3, photometric=0.2)


def test_a_cache_depends_on_the_contrast_and_one_of_a_seed_on_the_boxes(
    tmp_path: Path, write_data_set: Callable[..., Path]
) -> None:
    """Both change the tiles."""
    dataset = read_coco(write_data_set(tmp_path, images=2))
    first, *others = dataset.images
    moved = replace(dataset, images=(replace(first, boxes=first.boxes + 1), *others))
    stretched = data().model_copy(update={"imagery": ImageryOptions(stretch_uint8=True)})

    def depends_on(*of: Any, sampling: TileSampling | None = None) -> dict[str, Any]:
        return make_cache_spec(*of, tmp_path, rebuild=False, sampling=sampling).depends_on

    assert depends_on(dataset, stretched) != depends_on(dataset, data()) == depends_on(moved, data())
    sampling = TileSampling(seed=1, epochs=3)
    assert depends_on(dataset, data(), sampling=sampling) != depends_on(moved, data(), sampling=sampling)

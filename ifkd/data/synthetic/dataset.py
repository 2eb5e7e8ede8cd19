"""A synthetic data set on disk: made whole or not at all, and not made twice."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from ifkd.core.detections import Array
from ifkd.core.files import make_folder, write_json
from ifkd.core.parallel import Map, parallel_map
from ifkd.core.progress import progress, track
from ifkd.core.tiling import Window
from ifkd.data.generated_folder import FolderKind, made_once
from ifkd.data.synthetic.annotation import coco_file
from ifkd.data.synthetic.config import SPLITS
from ifkd.data.synthetic.painters import AnySynthetic
from ifkd.data.synthetic.picture import Truth
from ifkd.data.synthetic.scene import check_crs, paint_block, scene_blocks, scene_truths, write_scene
from ifkd.data.synthetic.tiles import Place, Tile, places, write_place

RECORD = "synthetic.json"
GENERATOR_VERSION = 1
"""Counts up whenever the same configuration gives other pixels or labels."""


def make_dataset(
    config: AnySynthetic, folder: Path, *, workers: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the data set into `folder`, unless it is there already.

    Args:
        config: What to make.
        folder: Where; it must be absent, empty or hold a synthetic data set.
        workers: Processes; by default one for each core. The files do not depend on it.
        force: Replace a synthetic data set of another configuration.

    Returns:
        The record of the data set, as its `synthetic.json` holds it, and `made`: whether it was made now.

    Raises:
        OutputError: The folder holds something else, or a data set of another configuration.
        ConfigError: The scenes' coordinate reference system is unknown or not in metres.
    """
    if config.scenes.count:
        check_crs(config)
    wanted = {"generator_version": GENERATOR_VERSION, "config": config.model_dump(mode="json")}

    def make(temporary: Path) -> dict[str, Any]:
        with parallel_map(os.cpu_count() or 1 if workers is None else workers) as in_order:
            return {"contents": _make(config, temporary, in_order)}

    return made_once(folder, FolderKind("a synthetic data set", RECORD), wanted, make=make, force=force)


def _make(config: AnySynthetic, folder: Path, in_order: Map) -> dict[str, Any]:
    """Write all files of the data set, and return what they hold."""
    images = make_folder(folder / "images")
    plan = places(config)
    jobs = [(config, place, images) for place in plan]
    split_of: dict[str, list[Tile]] = {split: [] for split in SPLITS}
    with progress(sum(place.tiles for place in plan), "tiles", unit="tile") as bar:
        for place, tiles in zip(plan, in_order(_place_job, jobs), strict=True):
            split_of[place.split] += tiles
            bar.update(len(tiles))
    contents: dict[str, Any] = {}
    size = (config.tile_px, config.tile_px)
    for split, tiles in split_of.items():
        content = coco_file([(tile.file_name, size, tile.annotations) for tile in tiles], config.class_names)
        write_json(folder / f"{split}.json", content)
        contents[split] = _summary(content)
    blocks = scene_blocks(config)
    for number in range(config.scenes.count):
        path = make_folder(folder / "scenes") / f"scene_{number:02d}.tif"
        painted = in_order(_block_job, [(config, number, window) for window in blocks])
        shown = track(painted, path.stem, total=len(blocks), unit="block")
        # The truths come from a worker, which has the world at hand.
        truths = next(in_order(_truth_job, [(config, number)]))
        contents[path.stem] = _summary(write_scene(path, config, number, blocks=shown, truths=truths))
    return contents


def _place_job(job: tuple[AnySynthetic, Place, Path]) -> list[Tile]:
    return write_place(*job)


def _block_job(job: tuple[AnySynthetic, int, Window]) -> Array:
    return paint_block(*job)


def _truth_job(job: tuple[AnySynthetic, int]) -> list[Truth]:
    return scene_truths(*job)


def _summary(content: dict[str, Any]) -> dict[str, Any]:
    """Return how many images, and objects of each class, a COCO content has."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = Counter(
        names[annotation["category_id"]] for annotation in content["annotations"] if not annotation["iscrowd"]
    )
    return {"images": len(content["images"]), "objects": {name: counts[name] for name in names.values()}}

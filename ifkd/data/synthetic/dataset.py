"""A synthetic data set on disk: written completely or not at all, and only once."""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from ifkd.core.files import make_folder, write_json
from ifkd.core.parallel import Map, parallel_map
from ifkd.core.progress import progress, track
from ifkd.data.generated_folder import FolderKind, generate_once
from ifkd.data.synthetic.config import SPLITS, AnySynthetic
from ifkd.data.synthetic.labels import LabeledImage, coco_file
from ifkd.data.synthetic.scene import check_crs, paint_block, scene_blocks, scene_labels, write_scene
from ifkd.data.synthetic.tiles import tile_places, write_place

RECORD = "synthetic.json"
GENERATOR_VERSION = 4  # Increases whenever the same configuration gives other pixels or labels


def make_dataset(
    config: AnySynthetic, folder: Path, *, workers: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the data set into `folder`, unless it is there already; return its record, and `made`: whether it was now.

    The files do not depend on the number of `workers`; `force` replaces a data set of another configuration.

    Raises:
        OutputError: The folder holds something else, or a data set of another configuration.
        ConfigError: The coordinate reference system of the scenes is unknown or not in meters.
    """
    if config.scenes.count:
        check_crs(config)
    wanted = {"generator_version": GENERATOR_VERSION, "config": config.model_dump(mode="json")}

    def make(temporary: Path) -> dict[str, Any]:
        with parallel_map(os.cpu_count() or 1 if workers is None else workers) as in_order:
            return {"contents": _write_tiles(config, temporary, in_order) | _write_scenes(config, temporary, in_order)}

    return generate_once(folder, FolderKind("a synthetic data set", RECORD), wanted, make=make, force=force)


def _write_tiles(config: AnySynthetic, folder: Path, in_order: Map) -> dict[str, Any]:
    """Write the tiles and labels of all splits, and return the summary of each split."""
    places = tile_places(config)
    tiles: dict[str, list[LabeledImage]] = {split: [] for split in SPLITS}
    write = partial(write_place, config, make_folder(folder / "images"))
    with progress(sum(place.tiles for place in places), "tiles", unit="tile") as bar:
        for place, written in zip(places, in_order(write, places), strict=True):
            tiles[place.split] += written
            bar.update(len(written))
    contents = {}
    for split, written in tiles.items():
        content = coco_file(written, (config.tile_px, config.tile_px), config.traits.classes)
        write_json(folder / f"{split}.json", content)
        contents[split] = _summary(content)
    return contents


def _write_scenes(config: AnySynthetic, folder: Path, in_order: Map) -> dict[str, Any]:
    """Write the scenes and their labels, and return the summary of each scene."""
    blocks = scene_blocks(config)
    contents = {}
    for number in range(config.scenes.count):
        path = make_folder(folder / "scenes") / f"scene_{number:02d}.tif"
        painted = in_order(partial(paint_block, config, number), blocks)
        painted = track(painted, path.stem, total=len(blocks), unit="block")
        # A worker makes the labels, because it has the world in memory.
        labels = next(in_order(partial(scene_labels, config), [number]))
        contents[path.stem] = _summary(write_scene(path, config, number, blocks=painted, labels=labels))
    return contents


def _summary(content: dict[str, Any]) -> dict[str, Any]:
    """Return the number of images, and of objects of each class, in a COCO content."""
    counts = Counter(one["category_id"] for one in content["annotations"] if not one["iscrowd"])
    objects = {category["name"]: counts[category["id"]] for category in content["categories"]}
    return {"images": len(content["images"]), "objects": objects}

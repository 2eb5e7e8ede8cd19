"""A synthetic data set on disk: made whole or not at all, and not made twice."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from ifkd.data.synthetic.annotation import coco_file
from ifkd.data.synthetic.config import SPLITS, Synthetic
from ifkd.data.synthetic.picture import Truth
from ifkd.data.synthetic.scene import check_crs, paint_block, scene_blocks, scene_truths, write_scene
from ifkd.data.synthetic.tiles import Place, Tile, places, write_place
from ifkd.detections import Array
from ifkd.errors import OutputError
from ifkd.files import make_folder, write_json
from ifkd.progress import progress, track
from ifkd.tiling import Window

RECORD = "synthetic.json"
GENERATOR_VERSION = 1
"""Counts up whenever the same configuration gives other pixels or labels."""

T = TypeVar("T")
R = TypeVar("R")


def make_dataset(config: Synthetic, folder: Path, *, workers: int | None = None, force: bool = False) -> dict[str, Any]:
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
    present = _present(folder)
    if present is not None:
        differences = _differences(present, wanted)
        if not differences:
            return {**present, "made": False}
        if not force:
            raise OutputError(
                f"{folder} holds a data set that was made otherwise:\n  " + "\n  ".join(differences),
                mend="Choose another folder, or replace the data set with --force.",
            )
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with _mapper(os.cpu_count() or 1 if workers is None else workers) as in_order:
            record = {**wanted, "contents": _make(config, temporary, in_order)}
        write_json(temporary / RECORD, record)
        temporary.chmod(0o755)
        _take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**record, "made": True}


Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def _make(config: Synthetic, folder: Path, in_order: Mapper) -> dict[str, Any]:
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
        content = coco_file([(tile.file_name, size, tile.annotations) for tile in tiles], config.ships.classes)
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


def _place_job(job: tuple[Synthetic, Place, Path]) -> list[Tile]:
    return write_place(*job)


def _block_job(job: tuple[Synthetic, int, Window]) -> Array:
    return paint_block(*job)


def _truth_job(job: tuple[Synthetic, int]) -> list[Truth]:
    return scene_truths(*job)


@contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """Yield a `map` that keeps order and uses so many processes; one worker is this process."""
    if workers <= 1:
        yield map
        return
    # Fresh processes: a fork of a process with threads may hang.
    with get_context("spawn").Pool(workers) as pool:
        yield pool.imap


def _summary(content: dict[str, Any]) -> dict[str, Any]:
    """Return how many images, and objects of each class, a COCO content has."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = Counter(
        names[annotation["category_id"]] for annotation in content["annotations"] if not annotation["iscrowd"]
    )
    return {"images": len(content["images"]), "objects": {name: counts[name] for name in names.values()}}


def _present(folder: Path) -> dict[str, Any] | None:
    """Return the record of the data set in `folder`, or nothing if the folder is free.

    Raises:
        OutputError: It is neither.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or "config" not in record:
        raise OutputError(
            f"{folder} holds something that is not a synthetic data set",
            mend="Choose a folder that is absent or empty.",
        )
    return record


def _differences(present: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return lines on what of `wanted` the present record has otherwise."""
    old, new = _flat({key: present.get(key) for key in wanted}), _flat(wanted)
    return [
        f"{key}: there {old.get(key)!r}, wanted {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _take_place(temporary: Path, folder: Path) -> None:
    """Move a finished folder to its place; an older one there disappears."""
    try:
        if folder.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"Cannot write {folder} ({error.strerror or error})", mend="Choose another place.") from error

"""Cut a COCO data set of large images into tiles: `tiles.json`, `images/` and the record `slice.json`."""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from ifkd.core.errors import DataError
from ifkd.core.files import json_items, make_folder, sha256_of, write_json
from ifkd.core.progress import progress
from ifkd.core.tiling import Window
from ifkd.data.account import Account, Outcomes
from ifkd.data.coco import image_folder, parse_coco, read_coco_json
from ifkd.data.generated_folder import FolderKind, generate_once
from ifkd.data.slicing import tile_plan
from ifkd.data.slicing.tile_pixels import SourceValues, open_source, read_window, source_values, write_tile
from ifkd.data.slicing.tile_plan import Piece, PlannedTile, SourceImage, TileRules
from ifkd.imagery.image_files import companions

KIND = FolderKind("a folder of tiles", "slice.json")
TILES = "tiles.json"
VERSION = 5
"""Incremented when the same source and rules give other tiles or another record."""
RESTORED_PX = 0.01
"""Largest deviation of a restored box from its source."""


def slice_dataset(
    labels: Path, folder: Path, rules: TileRules, *, images: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Cut the images of a COCO file into tiles, unless `folder` already has them; `force` replaces other tiles.

    The images are in the folder `images` beside the labels by default. The result is the content of `slice.json`, and
    `made`: whether the tiles were written now.

    Raises:
        DataError: Labels or images are invalid, or no tile is left.
        OutputError: The folder has other contents, or is not writable.
    """
    content = read_coco_json(labels)
    sources = tile_plan.source_images(content, parse_coco(labels, content, images or image_folder(labels, content)))
    settings = {
        "version": VERSION,
        "labels": {"file": labels.name, "sha256": sha256_of(labels)},
        "images": {"count": len(sources), "sha256": _file_state(sources)},
        "rules": {**rules.model_dump(mode="json"), "nodata": None if rules.nodata is None else repr(rules.nodata)},
    }

    def make(temporary: Path) -> dict[str, Any]:
        return {"contents": _write(content, sources, rules, temporary)}

    return generate_once(folder, KIND, settings, make=make, force=force)


def _file_state(sources: Sequence[SourceImage]) -> str:
    """Return a digest of the names, sizes and modification times of the images and of the files that belong to them."""
    digest = hashlib.sha256()
    for source in sources:
        path = source.image.path
        if not path.is_file():
            raise DataError(f"There is no image {path}", hint="Name the folder of the images with --images.")
        for one in (path, *companions(path)):
            state = one.stat()
            name = source.file_name if one is path else one.name
            digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write(labels: dict[str, Any], sources: list[SourceImage], rules: TileRules, folder: Path) -> dict[str, Any]:
    """Write all files except the record, and return a summary."""
    planned = tile_plan.plan_tiles(sources, rules)
    valid = _valid_tiles(planned, sources, rules)
    tiles = tile_plan.select_tiles(valid, rules)
    if not tiles:
        raise DataError(
            "No tile would be written",
            got=f"{len(planned)} tiles, {len(valid)} with data, none with an object",
            hint="Keep empty tiles with --max-empty-fraction 1, or check the labels.",
        )
    values = _write_images(tiles, sources, rules, make_folder(folder / "images"))
    limits = [one.limits for one in values if one.limits is not None]
    content = tiles_content(tiles, sources, [json_items(one) for one in labels["categories"]])
    write_json(folder / TILES, content)
    return {
        "tiles": len(tiles),
        "empty_tiles": sum(not tile.has_objects for tile in tiles),
        "omitted_without_data": len(planned) - len(valid),
        "omitted_empty": len(valid) - len(tiles),
        "account": _account(content, sources, planned, valid, tiles).model_dump(mode="json"),
        "boxes_restored": _boxes_restored(content, sources),
        "limits": None if not limits else [float(value) for value in np.median(limits, axis=0)],
        "remarks": [remark for one in values for remark in one.remarks],
    }


def _valid_tiles(tiles: list[PlannedTile], sources: Sequence[SourceImage], rules: TileRules) -> list[PlannedTile]:
    """Return the tiles with enough valid pixels; images that cannot have gaps are opened, but not read."""
    kept = []
    with progress(len(tiles), "find gaps", unit="tile") as bar:
        for index, group in groupby(tiles, attrgetter("source")):
            with open_source(sources[index], tile_px=rules.tile_px, imagery=rules.imagery) as raster:
                for tile in group:
                    mask = read_window(raster, tile.window)[1] if raster.may_have_gaps else None
                    fraction = 1.0 if mask is None else float(mask.mean())
                    if fraction > 0 and fraction >= rules.min_valid_fraction:
                        kept.append(tile)
                    bar.update()
    return kept


def _write_images(
    tiles: Sequence[PlannedTile], sources: Sequence[SourceImage], rules: TileRules, folder: Path
) -> list[SourceValues]:
    """Write the tiles' images, and return the values of each source."""
    values = []
    with progress(len(tiles), "write tiles", unit="tile") as bar:
        for index, group in groupby(tiles, attrgetter("source")):
            with open_source(sources[index], tile_px=rules.tile_px, imagery=rules.imagery) as raster:
                values.append(source_values(raster))
                for tile in group:
                    path = folder / _file_name(sources[index], tile)
                    write_tile(path, raster, tile.window, *read_window(raster, tile.window))
                    bar.update()
    return values


def _file_name(source: SourceImage, tile: PlannedTile) -> str:
    return f"{source.tile_stem}_y{tile.window.top:05d}_x{tile.window.left:05d}.tif"


def tiles_content(
    tiles: Sequence[PlannedTile], sources: Sequence[SourceImage], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the COCO content of the tiles; every image and annotation refers to its source."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, tile in enumerate(tiles, start=1):
        source, window = sources[tile.source], tile.window
        entry = {"id": image_id, "file_name": _file_name(source, tile), "height": window.height, "width": window.width}
        origin = {"id": source.image.id, "file_name": source.file_name, "left": window.left, "top": window.top}
        images.append({**entry, "scene": source.image.scene, "source": origin})
        for piece in tile.pieces:
            annotation = tile_plan.tile_annotation(piece, source)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {"images": images, "annotations": annotations, "categories": categories}


def _account(
    content: dict[str, Any],
    sources: Sequence[SourceImage],
    planned: Sequence[PlannedTile],
    valid: Sequence[PlannedTile],
    tiles: Sequence[PlannedTile],
) -> Account:
    """Return the outcomes of the sources' images and objects, by the tiles planned, valid and written."""
    images, objects = Outcomes(), Outcomes()
    written: dict[int, list[PlannedTile]] = {index: [] for index in range(len(sources))}
    for tile in tiles:
        written[tile.source].append(tile)
    with_data = {tile.source for tile in valid}
    pieces_of = [
        {(tile.source, piece.index) for tile in some for piece in tile.pieces} for some in (planned, valid, tiles)
    ]
    for index, source in enumerate(sources):
        windows = [tile.window for tile in written[index]]
        if not windows:
            images.drop("tiles_without_objects" if index in with_data else "tiles_without_data", source.file_name)
        elif windows != [Window(0, 0, *source.image.size)]:
            images.change("cut_into_tiles")
        pieces: dict[int, list[Piece]] = {}
        for piece in (piece for tile in written[index] for piece in tile.pieces):
            pieces.setdefault(piece.index, []).append(piece)
        for box, ignored in enumerate(source.image.ignore.tolist()):
            found = [piece for piece in pieces.get(box, ()) if ignored or not piece.ignore]
            if not pieces.get(box):
                present = [(index, box) in some for some in pieces_of]
                reasons = ("less_visible", "tiles_without_data", "tiles_without_objects")
                objects.drop(reasons[present.index(False)])
            elif not found:
                objects.change("ignored_where_less_visible")
            elif max(piece.visibility for piece in found) <= 1 - 1e-9:
                objects.change("cut_at_tile_borders")
    written_images = {image["source"]["id"] for image in content["images"]}
    written_objects = {annotation["source_annotation"] for annotation in content["annotations"]}
    received = sum(len(source.annotations) for source in sources)
    return Account(
        images=images.tally(received=len(sources), written=len(written_images)),
        objects=objects.tally(received=received, written=len(written_objects)),
    )


def _boxes_restored(content: dict[str, Any], sources: Sequence[SourceImage]) -> int:
    """Return how many of the sources' boxes are the bounding boxes of their pieces."""
    found = tile_plan.restore_boxes(content)
    restored = 0
    for source in sources:
        for annotation, box in zip(source.annotations, source.boxes, strict=True):
            same = found.get(annotation["id"])
            restored += same is not None and bool(np.abs(same - box).max() <= RESTORED_PX)
    return restored

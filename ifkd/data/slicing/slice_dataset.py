"""A COCO data set of large images becomes one of tiles: `tiles.json`, `images/` and a record, whole or not at all."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ifkd.core.errors import DataError
from ifkd.core.files import make_folder, sha256_of, write_json
from ifkd.core.progress import progress
from ifkd.data.coco import check_content, read_json
from ifkd.data.generated_folder import FolderKind, made_once
from ifkd.data.slicing.tile_labels import put_together, tile_annotation
from ifkd.data.slicing.tile_pixels import TileWriter, limits_of, opened, read
from ifkd.data.slicing.tile_plan import PlannedTile, SourceImage, TileRules, chosen, sources_of, tiles_of
from ifkd.imagery.contrast import Imagery

KIND = FolderKind("a folder of tiles", "slice.json")
TILES = "tiles.json"
VERSION = 1
"""Counts up whenever the same source and rules give other tiles."""


def make_tiles(
    labels: Path, folder: Path, rules: TileRules, *, images: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Cut the images of a COCO file into tiles, unless `folder` holds them already.

    Args:
        labels: The COCO file.
        folder: Where tiles go; it must be absent, empty or hold tiles.
        rules: How they are cut.
        images: The folder of the images; by default `images` beside the COCO file.
        force: Replace tiles that were cut otherwise.

    Returns:
        The record, as `slice.json` holds it, and `made`: whether it was made now.

    Raises:
        DataError: Labels or images cannot be used, or no tile is left.
        OutputError: The folder holds something else, or cannot be written.
    """
    content = read_json(labels)
    at = labels.parent / "images" if images is None else images
    sources = sources_of(content, check_content(labels, content, at))
    wanted = {
        "version": VERSION,
        "labels": {"file": labels.name, "sha256": sha256_of(labels)},
        "images": {"count": len(sources), "sha256": _state_of(sources)},
        "rules": {**rules.model_dump(mode="json"), "nodata": None if rules.nodata is None else f"{rules.nodata:g}"},
    }

    def make(temporary: Path) -> dict[str, Any]:
        return {"contents": _make(content["categories"], sources, rules, temporary)}

    return made_once(folder, KIND, wanted, make=make, force=force)


def _state_of(sources: Sequence[SourceImage]) -> str:
    """Return a digest of the image files' names, sizes and times of change.

    Raises:
        DataError: One is absent.
    """
    digest = hashlib.sha256()
    for source in sources:
        try:
            state = source.path.stat()
        except OSError as error:
            raise DataError(
                f"There is no image {source.path}", hint="Name the folder of the images with --images."
            ) from error
        digest.update(f"{source.file_name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _make(
    categories: list[dict[str, Any]], sources: Sequence[SourceImage], rules: TileRules, folder: Path
) -> dict[str, Any]:
    """Write all files but the record, and return what they hold."""
    every = tiles_of(sources, rules)
    with_data = _with_data(every, sources, rules)
    tiles = chosen(with_data, rules)
    if not tiles:
        raise DataError(
            "No tile would be written",
            got=f"{len(every)} tiles, {len(with_data)} with data, none with an object",
            hint="Keep empty tiles with --max-empty-fraction 1, or look at the labels.",
        )
    limits = _write_pixels(tiles, sources, rules, make_folder(folder / "images"))
    content = content_of(tiles, sources, categories)
    write_json(folder / TILES, content)
    return {
        "tiles": len(tiles),
        "empty": sum(not tile.shows_objects for tile in tiles),
        "without_data": len(every) - len(with_data),
        "left_out_empty": len(with_data) - len(tiles),
        **_account(content, tiles, sources),
        "limits": None if not limits else [float(value) for value in np.median(limits, axis=0)],
    }


def _with_data(tiles: list[PlannedTile], sources: Sequence[SourceImage], rules: TileRules) -> list[PlannedTile]:
    """Return the tiles of which enough has data. Images that cannot have gaps are opened, and not read."""
    kept = []
    with progress(len(tiles), "looking for gaps", unit="tile") as bar:
        for number, group in _by_image(tiles):
            with opened(sources[number], tile_px=rules.tile_px, nodata=rules.nodata) as raster:
                for tile in group:
                    valid = read(raster, tile.window)[1] if raster.may_have_gaps else None
                    share = 1.0 if valid is None else float(valid.mean())
                    if share > 0 and share >= rules.data_share:
                        kept.append(tile)
                    bar.update()
    return kept


def _write_pixels(
    tiles: Sequence[PlannedTile], sources: Sequence[SourceImage], rules: TileRules, folder: Path
) -> list[tuple[float, float]]:
    """Write the tiles' images, and return the percentiles of each source that has not 8 bits."""
    found = []
    with progress(len(tiles), "tiles", unit="tile") as bar:
        for number, group in _by_image(tiles):
            with opened(sources[number], tile_px=rules.tile_px, nodata=rules.nodata) as raster:
                limits = limits_of(raster, Imagery())
                found += [limits] if limits is not None else []
                writer = TileWriter(raster)
                for tile in group:
                    writer.write(folder / _name(sources[number], tile), tile.window, *read(raster, tile.window))
                    bar.update()
    return found


def _by_image(tiles: Sequence[PlannedTile]) -> Iterator[tuple[int, Iterator[PlannedTile]]]:
    return groupby(tiles, key=lambda tile: tile.image)


def _name(source: SourceImage, tile: PlannedTile) -> str:
    return f"{source.stem}_y{tile.window.top:05d}_x{tile.window.left:05d}.tif"


def content_of(
    tiles: Sequence[PlannedTile], sources: Sequence[SourceImage], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the COCO file of the tiles, with the map back to the source in every image and annotation."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, tile in enumerate(tiles, start=1):
        source, window = sources[tile.image], tile.window
        images.append(
            {
                "id": number,
                "file_name": _name(source, tile),
                "height": window.height,
                "width": window.width,
                "scene": source.place,
                "source": {"id": source.id, "file_name": source.file_name, "left": window.left, "top": window.top},
            }
        )
        for piece in tile.pieces:
            annotation = tile_annotation(piece, source.boxes)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    return {"images": images, "annotations": annotations, "categories": categories}


def _account(content: dict[str, Any], tiles: Sequence[PlannedTile], sources: Sequence[SourceImage]) -> dict[str, Any]:
    """Return what became of the sources' objects, regions to ignore left out."""
    whole: set[tuple[int, int]] = set()
    objects: set[tuple[int, int]] = set()
    for tile in tiles:
        objects |= {(tile.image, piece.index) for piece in tile.pieces if not piece.ignore}
        whole |= {(tile.image, piece.index) for piece in tile.pieces if not piece.ignore and piece.share > 1 - 1e-9}
    hulls = put_together(content)
    restored = 0
    for source in sources:
        for number, box in zip(source.boxes.numbers, source.boxes.boxes, strict=True):
            restored += number in hulls and bool(np.abs(hulls[number] - box).max() <= 0.01)
    return {
        "objects": int(sum((~source.boxes.ignore).sum() for source in sources)),
        "objects_shown": len(objects),
        "objects_whole": len(whole),
        "boxes": int(sum(len(source.boxes.boxes) for source in sources)),
        "boxes_restored": restored,
    }

"""Plan of a tiled data set: windows of each image, their labels, and which tiles to keep."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from ifkd.core.config import Schema
from ifkd.core.errors import DataError
from ifkd.core.tiling import TileGrid, Window
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.slicing.tile_labels import Piece, SourceBoxes, pieces_in, source_boxes

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class TileRules(Schema):
    """Settings of `ifkd data slice`."""

    tile_px: PositiveInt = 512
    """Side of a tile, source pixels; a smaller image becomes one smaller tile."""
    overlap_px: Annotated[int, Field(ge=0)] = 128
    """Least overlap of neighboring tiles; an object up to this size is complete in some tile."""
    min_visibility: Fraction = 0.4
    """Least visible fraction of an object's area; see `cut_objects`."""
    cut_objects: Literal["ignore", "drop"] = "ignore"
    """Whether less visible objects become ignored regions (iscrowd), or are dropped."""
    max_empty_fraction: Fraction = 0.1
    """Largest fraction of tiles without objects among the tiles written; 1 keeps every tile."""
    min_valid_fraction: Fraction = 0.05
    """Tiles with a smaller fraction of valid pixels are left out; 0 keeps all that have any."""
    nodata: float | None = None
    """Value of pixels without data, for files that do not state it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the choice of empty tiles."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> "TileRules":
        if self.overlap_px >= self.tile_px:
            raise ValueError(f"overlap_px must be below tile_px, got {self.overlap_px} and {self.tile_px}")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """One image to cut."""

    image: LabeledImage
    file_name: str
    """Key `file_name` of its entry."""
    tile_stem: str
    """Unique prefix of its tiles' file names."""
    boxes: SourceBoxes


@dataclass(frozen=True, slots=True, eq=False)
class PlannedTile:
    """One tile."""

    source: int
    """Index of its image among the sources."""
    window: Window
    """Window of that image."""
    pieces: tuple[Piece, ...]

    @property
    def has_objects(self) -> bool:
        """Whether it has an object that is not ignored."""
        return any(not piece.ignore for piece in self.pieces)


def source_images(content: dict[str, Any], dataset: CocoDataset) -> list[SourceImage]:
    """Return the images of a COCO file, given as its content and as the data set parsed from it."""
    ids = [annotation.get("id") for annotation in content["annotations"]]
    if None in ids or len(set(ids)) < len(ids):
        raise DataError(
            f"The annotations of {dataset.path} need unique ids, to which tiles refer",
            got="annotations without an id, or with the same id",
            hint="Number them from 1.",
        )
    by_image: dict[Any, list[dict[str, Any]]] = {image.id: [] for image in dataset.images}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    stems = _tile_stems([image["file_name"] for image in content["images"]])
    return [
        SourceImage(
            image=image,
            file_name=entry["file_name"],
            tile_stem=stem,
            boxes=source_boxes(by_image[image.id], image.size),
        )
        for image, entry, stem in zip(dataset.images, content["images"], stems, strict=True)
    ]


def plan_tiles(sources: Sequence[SourceImage], rules: TileRules) -> list[PlannedTile]:
    """Return all tiles of all images, row by row."""
    return [
        PlannedTile(
            index,
            window,
            tuple(pieces_in(source.boxes, window, min_visibility=rules.min_visibility, cut_objects=rules.cut_objects)),
        )
        for index, source in enumerate(sources)
        for window in _windows(source.image.size, rules)
    ]


def select_tiles(tiles: Sequence[PlannedTile], rules: TileRules) -> list[PlannedTile]:
    """Return the tiles with objects, and a random choice of as many empty ones as the rules allow, in order."""
    empty = [index for index, tile in enumerate(tiles) if not tile.has_objects]
    if rules.max_empty_fraction < 1:
        with_objects = len(tiles) - len(empty)
        allowed = int(with_objects * rules.max_empty_fraction / (1 - rules.max_empty_fraction) + 1e-9)
        order = np.random.default_rng(rules.seed).permutation(len(empty))
        empty = [empty[index] for index in order[:allowed]]
    kept = set(empty)
    return [tile for index, tile in enumerate(tiles) if tile.has_objects or index in kept]


def _windows(size: tuple[int, int], rules: TileRules) -> Iterator[Window]:
    """Yield the windows of an image of `size` (height, width), as detection tiles it; none exceeds the image."""
    height, width = size
    for window in TileGrid(size, (rules.tile_px, rules.tile_px), rules.overlap_px):
        yield Window(window.top, window.left, min(window.height, height), min(window.width, width))


def _tile_stems(names: Sequence[str]) -> list[str]:
    """Return a file name prefix for each image; they differ even on file systems that ignore case."""
    stems = [Path(name).stem[:100] for name in names]
    counts = Counter(stem.casefold() for stem in stems)
    return [
        stem if counts[stem.casefold()] == 1 else f"{stem}_{number:06d}" for number, stem in enumerate(stems, start=1)
    ]

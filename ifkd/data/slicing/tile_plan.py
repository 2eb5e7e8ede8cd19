"""Plan of a tiled data set: windows of each image, their labels, which tiles to keep, and boxes restored from them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import DataError
from ifkd.core.files import folded, json_items, shortened
from ifkd.core.oriented_boxes import translate
from ifkd.core.tiling import TileGrid, Window
from ifkd.data.coco import CocoDataset, LabeledImage, box_entry
from ifkd.data.label_values import label_id
from ifkd.data.oriented_labels import CutBoxes, boxes_of_parts, corner_polygon, cut_boxes
from ifkd.imagery.contrast import AlphaBand, ImageryOptions
from ifkd.recipe.value_types import Fraction

MIN_SIDE_PX = 0.01
"""Narrower parts of a box are left out."""
MAX_STEM_BYTES = 180
"""Longest prefix of a tile's file name, UTF-8; file systems allow names of 255 bytes."""
REPLACED_KEYS = ("id", "image_id", "bbox", "area", "iscrowd", "segmentation")
"""Keys of a source's annotation that a tile's does not copy."""


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
    alpha: AlphaBand | None = None
    """Band that is 0 where an image has no data, or `none`; by default as in `ImageryOptions`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the choice of empty tiles."""

    @property
    def imagery(self) -> ImageryOptions:
        """Options for reading the source images."""
        return ImageryOptions(nodata=self.nodata, alpha=self.alpha)

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
    annotations: list[dict[str, Any]]
    boxes: Array
    """float64 [n, 4], x1 y1 x2 y2, pixels, clipped to the image."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a box that is inside a tile."""

    index: int
    """Index of the box in its source image."""
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2, tile pixels."""
    visibility: float
    """Fraction inside the tile of the area of the oriented box, or of the upright one where there is no other."""
    ignore: bool
    oriented: tuple[float, ...] | None = None
    """Oriented box of the part, as in `ifkd.core.oriented_boxes`, tile pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedTile:
    """One tile."""

    source: int
    """Index of its image among the sources."""
    window: Window
    pieces: tuple[Piece, ...]

    @property
    def has_objects(self) -> bool:
        """Whether it has an object that is not ignored."""
        return any(not piece.ignore for piece in self.pieces)


def source_images(content: dict[str, Any], dataset: CocoDataset) -> list[SourceImage]:
    """Return the images of a COCO file, given as its content and as the data set parsed from it."""
    ids = [annotation.get("id") for annotation in content["annotations"]]
    if not all(isinstance(one, int | str) for one in ids) or len(set(ids)) < len(ids):
        raise DataError(
            f"The annotations of {dataset.path} need unique ids, to which tiles refer",
            got="ids that repeat, are missing, or are neither integers nor text",
            hint="Number them from 1.",
        )
    by_image: dict[Any, list[dict[str, Any]]] = {image.id: [] for image in dataset.images}
    for annotation in content["annotations"]:
        by_image[label_id(annotation["image_id"])].append(annotation)
    names = [image["file_name"] for image in content["images"]]
    sources = []
    for image, name, stem in zip(dataset.images, names, _tile_stems(names), strict=True):
        corners = np.array([annotation["bbox"] for annotation in by_image[image.id]], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes = corners.clip(0.0, [image.size[1], image.size[0]] * 2)
        sources.append(SourceImage(image, name, stem, by_image[image.id], boxes))
    return sources


def plan_tiles(sources: Sequence[SourceImage], rules: TileRules) -> list[PlannedTile]:
    """Return all tiles of all images, row by row, as detection cuts them; none exceeds its image."""
    tiles = []
    for index, source in enumerate(sources):
        height, width = source.image.size
        for cell in TileGrid(source.image.size, (rules.tile_px, rules.tile_px), rules.overlap_px):
            window = Window(cell.top, cell.left, min(cell.height, height), min(cell.width, width))
            tiles.append(PlannedTile(index, window, pieces_in(source, window, rules)))
    return tiles


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


def _tile_stems(names: Sequence[str]) -> list[str]:
    """Return a file name prefix for each image; they differ even on file systems that ignore case or normalization."""
    stems = [shortened(Path(name).stem[:100], MAX_STEM_BYTES) for name in names]
    counts = Counter(map(folded, stems))
    numbered = [f"{stem}_{number:06d}" for number, stem in enumerate(stems, start=1)]
    chosen = [stem if counts[folded(stem)] == 1 else other for stem, other in zip(stems, numbered, strict=True)]
    return chosen if len(set(map(folded, chosen))) == len(chosen) else numbered  # a name may have another's number


def pieces_in(source: SourceImage, window: Window, rules: TileRules) -> tuple[Piece, ...]:
    """Return the parts of an image's boxes inside a window; less visible objects are ignored or dropped."""
    origin = np.array([window.left, window.top] * 2, np.float64)
    cut = (source.boxes - origin).clip(0.0, [window.width, window.height] * 2)
    parts = _oriented_parts(source, window)
    cut = boxes_of_parts(cut, parts)
    sides = cut[:, 2:] - cut[:, :2]
    fractions = (sides / (source.boxes[:, 2:] - source.boxes[:, :2])).prod(axis=1)
    visibilities = np.where(np.isnan(parts.visible), fractions, parts.visible)
    pieces = []
    for index in np.flatnonzero((sides >= MIN_SIDE_PX).all(axis=1) & (visibilities > 0)).tolist():
        crowd, visibility = bool(source.image.ignore[index]), float(visibilities[index])
        small = visibility < rules.min_visibility
        if crowd or not small or rules.cut_objects == "ignore":
            x1, y1, x2, y2 = cut[index].tolist()
            oriented = None if np.isnan(parts.oriented[index]).any() else tuple(parts.oriented[index].tolist())
            pieces.append(Piece(index, (x1, y1, x2, y2), visibility, crowd or small, oriented))
    return tuple(pieces)


def _oriented_parts(source: SourceImage, window: Window) -> CutBoxes:
    """Return the parts of an image's oriented boxes inside a window, tile pixels; NaN for objects that have none."""
    oriented = source.image.oriented
    if oriented is None:
        nothing = np.full((len(source.boxes), 5), np.nan, np.float32)
        return CutBoxes(nothing, nothing[:, :4], nothing[:, 0])
    moved = translate(oriented, dx=float(-window.left), dy=float(-window.top))
    return cut_boxes(moved, (window.height, window.width))


def tile_annotation(piece: Piece, source: SourceImage) -> dict[str, Any]:
    """Return a piece as a COCO annotation without ids; `source_annotation` is the id of its box in the source."""
    annotation = source.annotations[piece.index]
    return {
        **json_items({key: value for key, value in annotation.items() if key not in REPLACED_KEYS}),
        **box_entry(piece.box, ignore=piece.ignore),
        **({} if piece.oriented is None else {"segmentation": corner_polygon(np.array(piece.oriented))}),
        "source_annotation": annotation["id"],
        "visibility": round(piece.visibility, 4),
    }


def restore_boxes(content: Mapping[str, Any]) -> dict[int | str, Array]:
    """Return the source boxes of a tiled COCO file by annotation id: float64 [4], x1 y1 x2 y2, source pixels."""
    origins = {image["id"]: (image["source"]["left"], image["source"]["top"]) for image in content["images"]}
    restored: dict[int | str, Array] = {}
    for annotation in content["annotations"]:
        left, top = origins[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        piece = np.array([left + x, top + y, left + x + width, top + y + height])
        box = restored.setdefault(annotation["source_annotation"], piece)
        np.minimum(box[:2], piece[:2], out=box[:2])
        np.maximum(box[2:], piece[2:], out=box[2:])
    return restored

"""Which tiles of which images are written, and what each shows: all that can be said without their pixels."""

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
from ifkd.data.coco import CocoDataset
from ifkd.data.slicing.tile_labels import Piece, SourceBoxes, pieces_in, source_boxes

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TileRules(Schema):
    """How images are cut."""

    tile_px: PositiveInt = 512
    """Side of the tiles, pixels of the source; an image that is smaller gives a smaller tile."""
    overlap_px: Annotated[int, Field(ge=0)] = 128
    """What neighboring tiles share at least. An object no larger is whole in some tile."""
    keep_share: Share = 0.4
    """An object that an edge cuts stays one where at least this share of its area is visible."""
    rest: Literal["ignore", "drop"] = "ignore"
    """What becomes of smaller pieces: regions to ignore (iscrowd), or nothing."""
    empty_share: Share = 0.1
    """Of the tiles written, at most this share shows no object; 1 keeps every tile."""
    data_share: Share = 0.05
    """Tiles of which less than this share has data are left out; 0 keeps all that have any."""
    nodata: float | None = None
    """The value that means "no data", where a file does not say."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which empty tiles are kept."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> "TileRules":
        if self.overlap_px >= self.tile_px:
            raise ValueError(f"overlap_px must be below tile_px, got {self.overlap_px} and {self.tile_px}")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """One image to cut."""

    id: int | str
    path: Path
    file_name: str
    """As the source file has it."""
    place: str
    size: tuple[int, int]
    """(height, width), pixels."""
    stem: str
    """How the names of its tiles begin; no other image's do."""
    boxes: SourceBoxes


@dataclass(frozen=True, slots=True, eq=False)
class PlannedTile:
    """One tile."""

    image: int
    """Place of its image among the sources."""
    window: Window
    """Inside that image."""
    pieces: tuple[Piece, ...]

    @property
    def shows_objects(self) -> bool:
        """Whether it has an object that is not to be ignored."""
        return any(not piece.ignore for piece in self.pieces)


def sources_of(content: dict[str, Any], dataset: CocoDataset) -> list[SourceImage]:
    """Return the images of a COCO file, given as its content and as the data set that was read from it."""
    numbers = [annotation.get("id") for annotation in content["annotations"]]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise DataError(
            f"The annotations of {dataset.path} cannot be told apart, which the map back to it needs",
            got="annotations without an id, or several with one id",
            hint="Number them from 1.",
        )
    by_image: dict[Any, list[dict[str, Any]]] = {image.id: [] for image in dataset.images}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    stems = _stems([image["file_name"] for image in content["images"]])
    return [
        SourceImage(
            id=image.id,
            path=image.path,
            file_name=entry["file_name"],
            place=image.place,
            size=image.size,
            stem=stem,
            boxes=source_boxes(by_image[image.id], [one["id"] for one in by_image[image.id]], image.size),
        )
        for image, entry, stem in zip(dataset.images, content["images"], stems, strict=True)
    ]


def tiles_of(sources: Sequence[SourceImage], rules: TileRules) -> list[PlannedTile]:
    """Return all tiles of all images, row by row."""
    return [
        PlannedTile(
            number,
            window,
            tuple(pieces_in(source.boxes, window, keep_share=rules.keep_share, rest=rules.rest)),
        )
        for number, source in enumerate(sources)
        for window in windows_of(source.size, rules)
    ]


def windows_of(size: tuple[int, int], rules: TileRules) -> Iterator[Window]:
    """Yield the windows of an image of `size` (height, width): those of detection, cut where the image is smaller."""
    height, width = size
    for window in TileGrid(size, (rules.tile_px, rules.tile_px), rules.overlap_px):
        yield Window(window.top, window.left, min(window.height, height), min(window.width, width))


def chosen(tiles: Sequence[PlannedTile], rules: TileRules) -> list[PlannedTile]:
    """Return the tiles that show objects and as many of the others, drawn by the seed, as the rules allow, in order."""
    empty = [number for number, tile in enumerate(tiles) if not tile.shows_objects]
    if rules.empty_share < 1:
        full = len(tiles) - len(empty)
        allowed = int(full * rules.empty_share / (1 - rules.empty_share) + 1e-9)
        order = np.random.default_rng(rules.seed).permutation(len(empty))
        empty = [empty[place] for place in order[:allowed]]
    kept = set(empty)
    return [tile for number, tile in enumerate(tiles) if tile.shows_objects or number in kept]


def _stems(names: Sequence[str]) -> list[str]:
    """Return the beginning of the tiles' names for each image, all different even where case does not count."""
    plain = [Path(name).stem[:100] for name in names]
    met = Counter(stem.casefold() for stem in plain)
    return [stem if met[stem.casefold()] == 1 else f"{stem}_{number:06d}" for number, stem in enumerate(plain, start=1)]

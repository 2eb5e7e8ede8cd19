"""Detection result of a scene."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import shapely

from deploy.engines.engine import EngineInfo
from deploy.scene.filters import FiltersRecord, SceneFilters, require_places
from deploy.scene.read.georeference import centers, corners, map_polygons
from deploy.scene.read.scene import SceneInfo
from deploy.scene.screen.audit import SceneScreening
from deploy.scene.settings import DetectionSettings
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import MissingExtraError
from ifkd.core.tiling import TileGrid, Window
from ifkd.data.coco import coco_results


@dataclass(frozen=True, slots=True)
class UnreadableTile:
    """A tile that could not be read."""

    tile: str
    """Row and column in the grid, such as `r3c12`."""
    window: Window
    problem: str


@dataclass(frozen=True, slots=True, eq=False)
class SceneResult:
    """Detections of a scene, with the conditions of the run."""

    detections: Detections
    """Scene pixels, in descending order of score."""
    tiles: Array
    """int64 [n]: index of the tile that each detection comes from, row by row."""
    scene: SceneInfo
    engine: EngineInfo
    settings: DetectionSettings
    grid: TileGrid
    """Tiles, scene pixels."""
    category_ids: tuple[int, ...]
    """COCO category id by label."""
    empty: int
    """Tiles without data, which are skipped."""
    unreadable: tuple[UnreadableTile, ...]
    outside: int = 0
    """Tiles outside the area of interest."""
    resumed_rows: int = 0
    """Rows of tiles that an earlier run had finished."""
    retries: int = 0
    """Row ranges that ran again because their engine was lost."""
    crops: tuple[str | None, ...] | None = None
    """Path of the picture of each detection, relative to the output folder; None for no picture, or for none at all."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: read, preprocess (reader thread); wait, infer (calling thread); decode, journal, merge; and total."""
    tags: dict[str, Array] = field(default_factory=dict)
    """Properties that filters added, by name, [n]: bool, float64 with NaN for none, or object with None for none."""
    filters: FiltersRecord | None = None
    """Filters that were applied."""
    screening: SceneScreening | None = None
    """Outcome of the screen; None if there was none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.engine.classes

    @property
    def processed(self) -> int:
        """Tiles that passed through the engine."""
        unsearched = 0 if self.screening is None else self.screening.selection.unsearched
        return len(self.grid) - self.empty - self.outside - len(self.unreadable) - unsearched

    @property
    def searched(self) -> float:
        """Fraction of the tiles that were searched by the engine, or by the screen that skipped them."""
        return 1.0 - (self.empty + self.outside + len(self.unreadable)) / len(self.grid)

    def counts(self) -> dict[str, int]:
        """Return the number of detections by class name."""
        counts = np.bincount(self.detections.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def part(self, start: int, stop: int) -> "SceneResult":
        """Return a copy with only the detections from `start` to `stop`."""
        return self.select(np.arange(len(self.detections))[start:stop])

    def select(self, rows: Array) -> "SceneResult":
        """Return a copy with only the detections of `rows` (integers or a boolean mask)."""
        tags = {name: values[rows] for name, values in self.tags.items()}
        crops = None if self.crops is None else tuple(np.array(self.crops, object)[rows].tolist())
        found = self.detections.select(rows)
        return replace(self, detections=found, tiles=self.tiles[rows], crops=crops, tags=tags)

    def filtered(self, filters: SceneFilters | None) -> "SceneResult":
        """Return the result with the tags of filters, and without the detections that they drop.

        Raises:
            SceneError: The scene has no longitudes and latitudes.
        """
        if filters is None:
            return self
        require_places(filters, self.scene)
        lonlat = self.centers_lonlat()
        assert lonlat is not None
        rows = filters.apply(lonlat)
        return replace(self, tags={**self.tags, **rows.tags}, filters=rows.record).select(rows.keep)

    def centers_lonlat(self) -> Array | None:
        """Return longitude and latitude of the centers, float64 [n, 2], NaN off the Earth; None without places."""
        georeference = self.scene.georeference
        if georeference is None or self.scene.lonlat_problem is not None:
            return None
        return georeference.to_lonlat(centers(self.detections.outlines))

    def sizes_m(self) -> Array | None:
        """Return the ground lengths of the longer and the shorter side of each box, meters, float64 [n, 2].

        Without places on the Earth, they are pixels times the ground sample distance; None if that is unknown, too.
        They are NaN off the Earth.
        """
        georeference, boxes = self.scene.georeference, self.detections.outlines.astype(np.float64)
        if georeference is not None and self.scene.lonlat_problem is None:
            sides = georeference.sides_m(boxes)
        elif self.settings.gsd_m is not None:
            in_pixels = boxes[:, 2:] - boxes[:, :2] if self.detections.oriented is None else boxes[:, 2:4]
            sides = in_pixels * self.settings.gsd_m
        else:
            return None
        return np.sort(sides, axis=1)[:, ::-1]

    def headings_deg(self) -> Array | None:
        """Return the headings of oriented boxes, to 0.01 degrees; None without such boxes or without places.

        See `Georeference.headings_deg`.
        """
        georeference = self.scene.georeference
        if self.detections.oriented is None or georeference is None or self.scene.lonlat_problem is not None:
            return None
        return georeference.headings_deg(self.detections.oriented).round(2) % 180.0

    def tile_names(self) -> list[str]:
        """Return the name of the tile of each detection; see `tile_name`."""
        columns = len(self.grid.lefts)
        return [tile_name(index, columns) for index in self.tiles.tolist()]

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Return the detections in the COCO results format, with the category ids of the training data."""
        return coco_results([(image_id, self.detections)], self.category_ids)

    def properties(self) -> dict[str, list[Any]]:
        """Return the columns of the output formats, by name."""
        labels = self.detections.labels.tolist()
        n = len(labels)
        sizes = self.sizes_m()
        lengths, widths = [[None] * n] * 2 if sizes is None else map(_rounded, sizes.T)
        headings = self.headings_deg()
        turned = [None] * n if headings is None else _rounded(headings)
        return {
            "class_id": [self.category_ids[label] for label in labels],
            "class_name": [self.classes[label] for label in labels],
            "score": [round(float(score), 6) for score in self.detections.scores],
            "scene": [self.scene.name] * n,
            "time": [None if self.scene.time is None else str(self.scene.time)] * n,
            "length_m": lengths,
            "width_m": widths,
            **({} if self.detections.oriented is None else {"heading_deg": turned}),
            "tile": self.tile_names(),
            "model_sha256": [self.engine.sha256] * n,
            **({} if self.crops is None else {"crop": list(self.crops)}),
            **self.tag_values(),
        }

    def tag_values(self) -> dict[str, list[Any]]:
        """Return the properties that filters added, by name; None for none."""
        return {name: [_value(one) for one in values.tolist()] for name, values in self.tags.items()}

    def to_geodataframe(self) -> Any:
        """Return the detections as a geopandas GeoDataFrame; without a georeference, in pixels with y pointing down.

        Raises:
            MissingExtraError: geopandas is not installed.
        """
        try:
            import geopandas  # noqa: PLC0415 - an optional package
            import pandas as pd  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise MissingExtraError("geopandas", extra="geo", need="SceneResult.to_geodataframe") from error
        georeference, boxes = self.scene.georeference, self.detections.outlines
        if georeference is None:
            polygons, crs = shapely.polygons(corners(boxes)[:, [0, 3, 2, 1]]), None
        else:
            polygons, crs = map_polygons(georeference, boxes), georeference.crs.to_wkt()
        frame = geopandas.GeoDataFrame(self.properties(), geometry=polygons, crs=crs)
        frame["time"] = pd.to_datetime(frame["time"], utc=True).astype("datetime64[ms, UTC]")
        return frame


def _rounded(values: Array) -> list[float | None]:
    return [round(value, 2) if math.isfinite(value) else None for value in values.tolist()]


def _value(value: bool | float | str | None) -> bool | float | str | None:  # noqa: FBT001 - of a tag
    return None if isinstance(value, float) and math.isnan(value) else value


def tile_name(index: int, columns: int) -> str:
    """Return the name of a tile in a grid of `columns`, such as `r3c12`: row and column, both from 0."""
    row, column = divmod(index, columns)
    return f"r{row}c{column}"

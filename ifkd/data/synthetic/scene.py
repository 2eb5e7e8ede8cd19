"""Wide-swath scenes: georeferenced GeoTIFFs painted block by block, with their labels."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.windows import Window as RasterWindow

from ifkd.core.detections import Array
from ifkd.core.errors import ConfigError
from ifkd.core.files import write_json
from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import AnySynthetic
from ifkd.data.synthetic.labels import ObjectLabel, coco_file, geojson_file
from ifkd.data.synthetic.painters import WorldPainter, painter_of

EXAMPLE = "a UTM zone, for example EPSG:32633"
CACHE_BYTES = 64 << 20  # GDAL's own cache of written blocks, by default a twentieth of the machine's memory


def scene_painter(config: AnySynthetic, number: int) -> WorldPainter:
    """Return the painter of a scene."""
    height, width = size_px = config.scenes.size_px
    objects = round(height * width * (config.gsd_m / 1000) ** 2 * config.traits.per_km2)
    return painter_of(config, place=(9, number), size_px=size_px, objects=objects, wide=True)


def check_crs(config: AnySynthetic) -> None:
    """Raise a ConfigError if the scenes' coordinate reference system is unknown, or not projected in meters."""
    name = config.scenes.crs
    try:
        crs = CRS.from_user_input(name)
    except CRSError as error:
        raise ConfigError("scenes.crs is not a coordinate reference system", got=name, expected=EXAMPLE) from error
    if not crs.is_projected or crs.linear_units not in {"metre", "meter"}:
        raise ConfigError("scenes.crs must be projected in meters", got=name, expected=EXAMPLE)


def scene_blocks(config: AnySynthetic) -> list[Window]:
    """Return the blocks of a scene, row by row; the last ones may be smaller."""
    (height, width), side = config.scenes.size_px, config.scenes.block_px
    return [
        Window(top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def paint_block(config: AnySynthetic, number: int, window: Window) -> Array:
    """Return one block of a scene, [height, width, bands]; the painter is kept for the next one."""
    return _painter(type(config), config.model_dump_json(), number).paint(window)


def scene_labels(config: AnySynthetic, number: int) -> list[ObjectLabel]:
    """Return the labels of a scene."""
    return _painter(type(config), config.model_dump_json(), number).labels(Window(0, 0, *config.scenes.size_px))


def write_scene(
    path: Path, config: AnySynthetic, number: int, *, blocks: Iterator[Array], labels: list[ObjectLabel]
) -> dict[str, Any]:
    """Write a scene of the `scene_blocks` and its labels beside it, and return its COCO content."""
    layout, traits = config.scenes, config.traits
    east = layout.origin[0] + number * layout.size_px[1] * config.gsd_m
    transform = Affine(config.gsd_m, 0.0, east, 0.0, -config.gsd_m, layout.origin[1])
    profile = {
        "driver": "GTiff", "dtype": traits.dtype, "count": traits.bands,
        "height": layout.size_px[0], "width": layout.size_px[1], "crs": layout.crs, "transform": transform,
        "tiled": True, "blockxsize": layout.block_px, "blockysize": layout.block_px,
        "compress": "deflate", "predictor": 2, "zlevel": 4, "interleave": "pixel",
        "photometric": "RGB" if traits.bands == 3 else "MINISBLACK", "bigtiff": "IF_SAFER",
    }  # fmt: skip
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(path, "w", **profile) as raster:
        for window, block in zip(scene_blocks(config), blocks, strict=True):
            place = RasterWindow(window.left, window.top, window.width, window.height)
            raster.write(np.moveaxis(block, 2, 0), window=place)
    content = coco_file([(path.name, labels)], layout.size_px, traits.classes)
    write_json(path.with_suffix(".geojson"), geojson_file(labels, transform, layout.crs))
    write_json(path.with_suffix(".json"), content)
    return content


@lru_cache(maxsize=1)
def _painter(schema: type[AnySynthetic], config_json: str, number: int) -> WorldPainter:
    return scene_painter(schema.model_validate_json(config_json), number)

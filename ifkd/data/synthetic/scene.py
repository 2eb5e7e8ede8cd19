"""Wide-swath scenes: a georeferenced GeoTIFF painted block by block, with its ground truth."""

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
from ifkd.data.synthetic.annotation import coco_annotation, coco_file, geojson_file
from ifkd.data.synthetic.painters import AnySynthetic, WorldPainter, painter_of
from ifkd.data.synthetic.picture import Truth

CACHE_BYTES = 64 << 20
"""GDAL's own cache of written blocks, which would otherwise take a twentieth of the machine's memory."""


def scene_painter(config: AnySynthetic, number: int) -> WorldPainter:
    """Return the painter of a scene."""
    height, width = config.scenes.size_px
    area_km2 = height * width * (config.gsd_m / 1000) ** 2
    objects = round(area_km2 * config.per_km2)
    return painter_of(config, place=(9, number), size_px=config.scenes.size_px, objects=objects, wide=True)


def scene_transform(config: AnySynthetic, number: int) -> Affine:
    """Return the transform from (column, row) to easting and northing."""
    east, north = config.scenes.origin
    east += number * config.scenes.size_px[1] * config.gsd_m
    return Affine(config.gsd_m, 0.0, east, 0.0, -config.gsd_m, north)


def check_crs(config: AnySynthetic) -> None:
    """Refuse a coordinate reference system in which scenes cannot be laid out.

    Raises:
        ConfigError: It is unknown, or not projected in metres.
    """
    name = config.scenes.crs
    try:
        crs = CRS.from_user_input(name)
    except CRSError as error:
        raise ConfigError(
            "scenes.crs is not a coordinate reference system", got=name, expected="for example EPSG:32633"
        ) from error
    if not crs.is_projected or crs.linear_units not in {"metre", "meter"}:
        raise ConfigError(
            "scenes.crs must be projected in metres", got=name, hint="Take a UTM zone, for example EPSG:32633."
        )


def scene_blocks(config: AnySynthetic) -> list[Window]:
    """Return the blocks of a scene, row by row; the last ones may be smaller."""
    height, width = config.scenes.size_px
    side = config.scenes.block_px
    return [
        Window(top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def paint_block(config: AnySynthetic, number: int, window: Window) -> Array:
    """Return one block of a scene, [height, width, bands]; the painter is kept for the next one."""
    return _painter(type(config), config.model_dump_json(), number).paint(window)


def scene_truths(config: AnySynthetic, number: int) -> list[Truth]:
    """Return the objects of a scene."""
    height, width = config.scenes.size_px
    return _painter(type(config), config.model_dump_json(), number).truths(Window(0, 0, height, width))


def write_scene(
    path: Path, config: AnySynthetic, number: int, *, blocks: Iterator[Array], truths: list[Truth]
) -> dict[str, Any]:
    """Write a scene and its truth beside it; `blocks` are those of `scene_blocks`, in order.

    Returns:
        The scene's COCO content.
    """
    height, width = config.scenes.size_px
    transform = scene_transform(config, number)
    dtype, bands = config.pixel
    profile = {
        "driver": "GTiff", "dtype": dtype, "count": bands, "height": height, "width": width,
        "crs": config.scenes.crs, "transform": transform, "tiled": True,
        "blockxsize": config.scenes.block_px, "blockysize": config.scenes.block_px,
        "compress": "deflate", "predictor": 2, "zlevel": 4, "interleave": "pixel",
        "photometric": "RGB" if bands == 3 else "MINISBLACK",
        "bigtiff": "IF_SAFER",
    }  # fmt: skip
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(path, "w", **profile) as raster:
        for window, block in zip(scene_blocks(config), blocks, strict=True):
            place = RasterWindow(window.left, window.top, window.width, window.height)
            raster.write(np.moveaxis(block, 2, 0), window=place)
    annotations = [coco_annotation(truth, config.class_names.index(truth.kind) + 1) for truth in truths]
    content = coco_file([(path.name, (height, width), annotations)], config.class_names)
    write_json(path.with_suffix(".geojson"), geojson_file(truths, transform, config.scenes.crs))
    write_json(path.with_suffix(".json"), content)
    return content


@lru_cache(maxsize=1)
def _painter(kind: type[AnySynthetic], config_json: str, number: int) -> WorldPainter:
    return scene_painter(kind.model_validate_json(config_json), number)

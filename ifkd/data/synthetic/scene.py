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

from ifkd.data.synthetic.annotation import coco_annotation, coco_file, geojson_file
from ifkd.data.synthetic.config import Synthetic
from ifkd.data.synthetic.picture import Painter, Truth
from ifkd.data.synthetic.world import make_world
from ifkd.detections import Array
from ifkd.errors import ConfigError
from ifkd.files import write_json
from ifkd.tiling import Window


def scene_painter(config: Synthetic, number: int) -> Painter:
    """Return the painter of a scene."""
    height, width = config.scenes.size_px
    area_km2 = height * width * (config.gsd_m / 1000) ** 2
    ships = round(area_km2 * config.scenes.ships_per_km2)
    world = make_world(config, place=(9, number), size_px=config.scenes.size_px, ships=ships, wide=True)
    return Painter(world, config)


def scene_transform(config: Synthetic, number: int) -> Affine:
    """Return the transform from (column, row) to easting and northing."""
    east, north = config.scenes.origin
    east += number * config.scenes.size_px[1] * config.gsd_m
    return Affine(config.gsd_m, 0.0, east, 0.0, -config.gsd_m, north)


def check_crs(config: Synthetic) -> None:
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
            "scenes.crs must be projected in metres", got=name, mend="Take a UTM zone, for example EPSG:32633."
        )


def scene_blocks(config: Synthetic) -> list[Window]:
    """Return the blocks of a scene, row by row; the last ones may be smaller."""
    height, width = config.scenes.size_px
    side = config.scenes.block_px
    return [
        Window(top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def paint_block(config: Synthetic, number: int, window: Window) -> Array:
    """Return one block of a scene, uint8 [height, width, 3]; the painter is kept for the next one."""
    return _painter(config.model_dump_json(), number).paint(window)


def scene_truths(config: Synthetic, number: int) -> list[Truth]:
    """Return the ships of a scene."""
    height, width = config.scenes.size_px
    return _painter(config.model_dump_json(), number).truths(Window(0, 0, height, width))


def write_scene(
    path: Path, config: Synthetic, number: int, *, blocks: Iterator[Array], truths: list[Truth]
) -> dict[str, Any]:
    """Write a scene and its truth beside it; `blocks` are those of `scene_blocks`, in order.

    Returns:
        The scene's COCO content.
    """
    height, width = config.scenes.size_px
    transform = scene_transform(config, number)
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 3, "height": height, "width": width,
        "crs": config.scenes.crs, "transform": transform, "tiled": True,
        "blockxsize": config.scenes.block_px, "blockysize": config.scenes.block_px,
        "compress": "deflate", "predictor": 2, "zlevel": 4, "photometric": "RGB", "interleave": "pixel",
        "bigtiff": "IF_SAFER",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as raster:
        for window, block in zip(scene_blocks(config), blocks, strict=True):
            place = RasterWindow(window.left, window.top, window.width, window.height)
            raster.write(np.moveaxis(block, 2, 0), window=place)
    annotations = [coco_annotation(truth, config.ships.classes.index(truth.kind) + 1) for truth in truths]
    content = coco_file([(path.name, (height, width), annotations)], config.ships.classes)
    write_json(path.with_suffix(".geojson"), geojson_file(truths, transform, config.scenes.crs))
    write_json(path.with_suffix(".json"), content)
    return content


@lru_cache(maxsize=1)
def _painter(config_json: str, number: int) -> Painter:
    return scene_painter(Synthetic.model_validate_json(config_json), number)

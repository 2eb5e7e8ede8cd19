"""Crops: a picture of each of the best detections with its surroundings, as the engine sees them."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.io import MemoryFile

from deploy.scene.read.georeference import Georeference
from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.write.file_names import CROPS_FOLDER
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.files import make_folder, not_writable, shortened
from ifkd.core.tiling import Window

MARGIN, MIN_MARGIN_PX = 0.5, 16
"""Surroundings on each side of a box, as a fraction of its longer side; and at least these pixels."""
MAX_NAME_BYTES = 200


def write_crops(result: SceneResult, scene: Scene, folder: Path, *, limit: int) -> SceneResult:
    """Write crops of the first `limit` detections into a subfolder of `folder`, and return the result with their paths.

    A crop is a GeoTIFF if the scene has a georeference, else a PNG. Its number is the index of the detection. There is
    none where the scene cannot be read.

    Raises:
        OutputError: The folder is not writable.
    """
    make_folder(folder / CROPS_FOLDER)
    georeference = result.scene.georeference
    stem, suffix = shortened(Path(scene.info.name).stem, MAX_NAME_BYTES), "png" if georeference is None else "tif"
    paths: list[str | None] = [None] * len(result.detections)
    for index, window in _from_top(crop_windows(result.detections.boxes[:limit], scene.size)):
        try:
            pixels = scene.read(window).pixels
        except SceneError:  # reported as an unreadable tile
            continue
        path = f"{CROPS_FOLDER}/{stem}_{index:05d}.{suffix}"
        content = _png(pixels) if georeference is None else _geotiff(pixels, georeference, window)
        try:
            (folder / path).write_bytes(content)
        except OSError as error:
            raise not_writable(folder / path, error) from error
        paths[index] = path
    return replace(result, crops=tuple(paths))


def crop_windows(boxes: Array, size: tuple[int, int]) -> list[Window]:
    """Return the windows of boxes [n, 4] with their surroundings, inside a scene of `size` (height, width)."""
    margin = np.maximum(MARGIN * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0), MIN_MARGIN_PX)[:, None]
    starts = np.floor(boxes[:, :2] - margin).clip(0).astype(int).tolist()
    stops = np.ceil(boxes[:, 2:] + margin).clip(max=[size[1], size[0]]).astype(int).tolist()
    return [Window(y1, x1, y2 - y1, x2 - x1) for (x1, y1), (x2, y2) in zip(starts, stops, strict=True)]


def _from_top(windows: list[Window]) -> Iterator[tuple[int, Window]]:
    """Yield windows with their indices from top to bottom, so that GDAL's cache has the blocks that they share."""
    yield from sorted(enumerate(windows), key=lambda item: (item[1].top, item[1].left))


def _png(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _geotiff(pixels: Array, georeference: Georeference, window: Window) -> bytes:
    height, width, count = pixels.shape
    if georeference.transform is None:
        moved = [(one.row - window.top, one.col - window.left, one.x, one.y) for one in georeference.gcps]
        place: dict[str, Any] = {"gcps": [GroundControlPoint(*one) for one in moved]}
    else:
        a, b, _, d, e, _ = tuple(georeference.transform)[:6]
        x, y = georeference.to_map(np.array([[window.left, window.top]]))[0]
        place = {"transform": Affine(a, b, x, d, e, y)}
    profile = {"driver": "GTiff", "dtype": "uint8", "photometric": "RGB", "compress": "deflate"}
    with MemoryFile() as file:
        with file.open(height=height, width=width, count=count, crs=georeference.crs, **place, **profile) as dataset:
            dataset.write(pixels.transpose(2, 0, 1))
        return bytes(file.getbuffer())

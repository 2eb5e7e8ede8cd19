"""Small scenes with known objects, fake engines that detect them, and a bundle without a model."""

import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from scipy import ndimage

from deploy.engines.engine import EngineInfo, FakeEngine
from export.bundle.bundle import open_bundle
from ifkd.core.detections import Detections

CLASSES = ("cargo", "tanker")
SHADES = (170, 230)
"""Gray value of the objects of each class; sea and padding are darker."""
SEA = 30
CATEGORY_IDS = (7, 3)
UTM = "EPSG:32633"
TILE = 64


def bright_rectangles(tile):
    """Return the bright rectangles of a tile [3, h, w]; larger ones have higher scores, so ties are rare."""
    boxes, scores, labels = [], [], []
    for label, (low, high) in enumerate([(140, 200), (200, 256)]):
        inside = (tile.astype(int) >= low) & (tile.astype(int) < high)
        marked, _ = ndimage.label(inside.all(axis=0))
        for rows, columns in ndimage.find_objects(marked):
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            boxes.append([columns.start, rows.start, columns.stop, rows.stop])
            scores.append(0.5 + 0.4 * area / (area + 200))
            labels.append(label)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def bright_rectangles_of_one_class(tile):
    """Return the bright rectangles of a tile as one class, including edges blurred by resampling."""
    return bright_rectangles(np.where((tile > 117).all(axis=0), np.uint8(170), np.uint8(0))[None].repeat(3, axis=0))


class CountingEngine(FakeEngine):
    """A fake engine that keeps a copy of each batch."""

    def __init__(self, *, find=bright_rectangles, tile=TILE, max_batch=4, sides=None):
        file = ("fake", "0", "nowhere", "fp32", "model.onnx", "f" * 64)
        info = EngineInfo(*file, (tile, tile), max_batch, 50, CLASSES, sides)
        super().__init__(info, find)
        self.batches = []

    def _run(self, tiles):
        self.batches.append(tiles.copy())
        return super()._run(tiles)


class FakeEngineError(BaseException):
    """Error of a fake engine, which stands for a killed process."""


class FailingEngine(CountingEngine):
    """A fake engine that fails after `calls` batches."""

    def __init__(self, calls):
        super().__init__()
        self._calls = calls

    def _run(self, tiles):
        if self._calls == 0:
            raise FakeEngineError
        self._calls -= 1
        return super()._run(tiles)


def sea(height, width, objects):
    """Return uint8 [height, width, 3]: sea with rectangles (x1, y1, x2, y2, label)."""
    pixels = np.full((height, width, 3), SEA, np.uint8)
    for x1, y1, x2, y2, label in objects:
        pixels[y1:y2, x1:x2] = SHADES[label]
    return pixels


def write_tif(path, pixels, *, crs=UTM, transform=None, **profile):
    """Write [height, width(, bands)] as GeoTIFF and return the path."""
    bands = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, count = bands.shape
    if crs is not None and transform is None:
        transform = Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 4_500_000.0)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype=bands.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as dataset:
        dataset.write(bands.transpose(2, 0, 1))
    return Path(path)


def write_bundle(folder, *, tile=TILE, scale=1.0, overlap=20, gsd_m=None, score=0.3, sides=None):
    """Write a bundle with a manifest and no files, and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "schema_version": 2,
        "name": "ships",
        "created": "2026-01-01T00:00:00Z",
        "producer": "test",
        "provenance": {},
        "detector": {},
        "input": {"tile_px": [tile, tile], "max_batch": 4, "scale": scale, "tile_sides_px": sides},
        "outputs": {"candidates": 50},
        "classes": CLASSES,
        "category_ids": CATEGORY_IDS,
        "defaults": {
            "postprocess": {"score_threshold": 0.05, "iou_threshold": 0.5, "max_detections": 50},
            "scene_score_threshold": score,
            "overlap_px": overlap,
            "gsd_m": gsd_m,
        },
        "files": {},
    }
    (folder / "model.json").write_text(json.dumps(manifest))
    return open_bundle(folder)


def as_set(detections):
    """Return the boxes and labels of detections as a set of tuples of integers."""
    return {
        (*(int(v) for v in np.rint(box)), int(label))
        for box, label in zip(detections.boxes, detections.labels, strict=True)
    }

"""Generated inputs of benchmarks/gpu.py, so that nothing but the bundle is carried to the machine."""

import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image

from export.bundle.manifest import Manifest
from export.tiles import structured_noise

TILES, SCENE_TILES = 32, 16
"""Labeled tiles, and tiles along a side of the scene."""
OBJECTS = 4


def write_tiles(folder: Path, manifest: Manifest, *, count: int = TILES) -> Path:
    """Write tiles of structured noise with bright rectangles as objects, and return their COCO file.

    A tile has the size that the bundle's scale makes an engine's tile of.
    """
    rng = np.random.default_rng(0)
    height, width = (round(side / manifest.input.scale) for side in manifest.input.tile_px)
    images, annotations = [], []
    for number in range(count):
        pixels = structured_noise((height, width), seed=number)
        for _ in range(OBJECTS):
            w, h = rng.integers(8, max(9, width // 4)), rng.integers(8, max(9, height // 4))
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            pixels[y : y + h, x : x + w] = rng.integers(150, 256, 3)
            box = {"bbox": [int(x), int(y), int(w), int(h)], "area": int(w * h), "iscrowd": 0}
            category = manifest.category_ids[int(rng.integers(len(manifest.category_ids)))]
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, "category_id": category, **box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": one, "name": name} for one, name in zip(manifest.category_ids, manifest.classes, strict=True)]
    path = folder / "tiles.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_scene(path: Path, manifest: Manifest, *, tiles: int = SCENE_TILES) -> Path:
    """Write a GeoTIFF of `tiles` times `tiles` tiles of structured noise, and return its path."""
    height, width = (round(side / manifest.input.scale) for side in manifest.input.tile_px)
    with rasterio.open(
        path, "w", driver="GTiff", height=tiles * height, width=tiles * width, count=3, dtype="uint8",
        crs="EPSG:32633", transform=Affine(1, 0, 400_000, 0, -1, 5_000_000), interleave="pixel", compress="deflate",
    ) as dataset:  # fmt: skip
        for row in range(tiles):
            noise = structured_noise((height, width), seed=row)
            band = np.concatenate([np.roll(noise, 7 * column, axis=1) for column in range(tiles)], axis=1)
            dataset.write(
                band.transpose(2, 0, 1), window=rasterio.windows.Window(0, row * height, tiles * width, height)
            )
    return path

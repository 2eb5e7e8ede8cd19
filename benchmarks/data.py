"""Speed of image loading, compared with a plain training step of a MobileNetV2 student, in images per second.

    python benchmarks/data.py [--px 256] [--batch 4] [--images 96] [--rounds 5] [--workers 0 1 2] [--only PNG]
    python benchmarks/data.py --recipe configs/airplanes_pleiades.toml [KEY=VALUE ...]

The loader is that of the trainer, with flips, quarter turns, scale jitter and photometric changes, without an image
cache: each image is decoded each time, from files in the page cache after the first round, which is not measured.
Without a recipe the images are a smooth field with rectangles and noise, in sizes and formats of real data sets. The
step is that of benchmarks/training.py: RetinaNet, MobileNetV2, 256 channels, forward, backward and optimizer, on all
threads of torch. Step and loaders run in turn; a rate is the median of the rounds, and a ratio the median of the
rounds' ratios. Exit code 1: one worker loads less than 1.5 times the images of the step.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from torch.utils.data import DataLoader
from training import CLASSES, PLAIN, StepBenchmark, StepConfig

from ifkd import recipe
from ifkd.core.config import load, parse
from ifkd.core.detections import Array
from ifkd.data.splits import read_split
from ifkd.recipe import Recipe
from ifkd.training.dataset import Batch, BatchDataset, EpochSampler, TileDataset

GOAL = 1.5
"""Least ratio of the images per second of one worker to those of the step."""
STEPS = 2
"""Training steps per round."""
AUGMENTATION = {"flip": True, "quarter_turns": True, "scale_jitter": [0.8, 1.25], "photometric": 0.2}


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Size and file format of a data set's images."""

    name: str
    size: tuple[int, int]
    """(height, width), pixels."""
    suffix: str
    scale: float
    """`data.scale` of the recipe."""


FORMATS = (
    ImageFormat("JPEG, 640x640, at 0.4", (640, 640), "jpg", 0.4),
    ImageFormat("JPEG, 1024x768, at 0.5", (768, 1024), "jpg", 0.5),
    ImageFormat("JPEG, 1000x1000, at 1", (1000, 1000), "jpg", 1.0),
    ImageFormat("PNG, 640x640, at 0.4", (640, 640), "png", 0.4),
    ImageFormat("GeoTIFF, uint16, 512x512, at 0.5", (512, 512), "tif", 0.5),
)


def make_image(size: tuple[int, int], random: np.random.Generator) -> Array:
    """Return uint8 [height, width, 3]: a field with rectangles and noise that compresses like aerial images."""
    height, width = size
    coarse = random.integers(40, 180, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
    field = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    field = field + random.normal(0, 6, (height, width, 1)).astype(np.float32)
    for _ in range(12):
        top, left = int(random.integers(0, height - 64)), int(random.integers(0, width - 64))
        field[top : top + 24, left : left + 48] = random.integers(0, 255, 3)
    return field.clip(0, 255).astype(np.uint8)


def write_file(path: Path, pixels: Array) -> None:
    """Write pixels as JPEG or PNG, or as GeoTIFF with 16 bits."""
    if path.suffix == ".tif":
        values = (pixels.astype(np.uint16) * 16).transpose(2, 0, 1)
        profile = {"driver": "GTiff", "count": 3, "height": values.shape[1], "width": values.shape[2]}
        place = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_000_000, 0.5, 0.5)}
        with rasterio.open(path, "w", dtype="uint16", compress="deflate", **place, **profile) as target:
            target.write(values)
    else:
        Image.fromarray(pixels).save(path, quality=90)


def write_set(folder: Path, image_format: ImageFormat, images: int) -> int:
    """Write labeled images as a COCO data set, and return the size of the image files in bytes."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries, annotations = [], []
    for index in range(images):
        name = f"{index}.{image_format.suffix}"
        write_file(folder / "images" / name, make_image(image_format.size, random))
        entries.append({"id": index, "file_name": name, "height": image_format.size[0], "width": image_format.size[1]})
        for _ in range(6):
            x, y = (float(random.integers(0, side - 64)) for side in image_format.size[::-1])
            box = {"bbox": [x, y, 48.0, 24.0], "area": 1152.0, "iscrowd": 0}
            category = int(random.integers(1, CLASSES + 1))
            annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": category, **box})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return sum(path.stat().st_size for path in (folder / "images").iterdir())


def data_of(folder: Path, image_format: ImageFormat, px: int) -> recipe.DataOptions:
    """Return the recipe's data options for a written data set."""
    values: dict[str, Any] = {
        "root": str(folder),
        "train": "train.json",
        "validation": "train.json",
        "test": "train.json",
        "scale": image_format.scale,
        "tile_px": px,
        "cache_mb": 0,
        "augmentation": AUGMENTATION,
    }
    if image_format.suffix == "tif":
        values["imagery"] = {"limits": [0, 4080]}
    return parse(values, recipe.DataOptions, source="the benchmark's data")


def loader_of(data: recipe.DataOptions, batch: int, workers: int) -> Callable[[], float]:
    """Return a function that loads an epoch as training does, and returns images per second."""
    images = read_split(data, "train")
    sampler = EpochSampler(len(images), batch, seed=0)
    loader: DataLoader[Any] = DataLoader(
        BatchDataset(TileDataset(images, data, seed=0)),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def load_epoch() -> float:
        count = 0
        started = time.perf_counter()
        for batch_loaded in loader:
            assert isinstance(batch_loaded, Batch)
            count += len(batch_loaded)
        sampler.epoch += 1
        return count / (time.perf_counter() - started)

    return load_epoch


def steps_of(folder: Path, px: int, batch: int) -> Callable[[], float]:
    """Return a function that runs a few plain training steps, and returns images per second."""
    folder.mkdir()
    step = StepBenchmark(folder, StepConfig("retinanet", "mobilenet_v2", px, batch, 1)).make_step(PLAIN)

    def run_steps() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        return STEPS * batch / (time.perf_counter() - started)

    return run_steps


def measure(data: recipe.DataOptions, step: Callable[[], float], options: argparse.Namespace) -> float | None:
    """Print the rates of a data set, and return the ratio of one worker to the step; None if it is not measured."""
    loaders = {workers: loader_of(data, options.batch, workers) for workers in options.workers}
    rates: dict[int, list[float]] = {workers: [] for workers in loaders}
    consumed: list[float] = []
    for number in range(options.rounds + 1):  # the first is not measured
        rate = step()
        if number:
            consumed.append(rate)
        for workers, load_epoch in loaders.items():
            rate = load_epoch()
            if number:
                rates[workers].append(rate)
    print(
        f"  step {statistics.median(consumed):6.1f} images/s ({min(consumed):.1f} to {max(consumed):.1f})", flush=True
    )
    ratios = {}
    for workers, found in rates.items():
        ratios[workers] = statistics.median(one / step_rate for one, step_rate in zip(found, consumed, strict=True))
        where = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "in the training process"
        print(
            f"  {where}: {statistics.median(found):6.1f} images/s ({min(found):.1f} to {max(found):.1f}), "
            f"{ratios[workers]:.2f} x the step",
            flush=True,
        )
    return ratios.get(1)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="measure the training split of this recipe instead")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="WORD", help="only formats whose name contains WORD")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_intermixed_args()
    print(f"{options.px} px, batch {options.batch}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    ratios: list[float | None] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        step = steps_of(folder / "step", options.px, options.batch)
        if options.recipe is not None:
            data = load(options.recipe, Recipe, options.overrides).data
            print(f"\n{options.recipe}")
            ratios.append(measure(data.model_copy(update={"cache_mb": 0}), step, options))
        formats = [
            image_format for image_format in FORMATS if options.recipe is None and options.only in image_format.name
        ]
        for index, image_format in enumerate(formats):
            data_folder = folder / str(index)
            size_bytes = write_set(data_folder, image_format, options.images)
            print(f"\n{image_format.name}, {size_bytes / options.images / 1000:.0f} kB per image")
            ratios.append(measure(data_of(data_folder, image_format, options.px), step, options))
    measured = [ratio for ratio in ratios if ratio is not None]
    if not measured:
        return 0
    met = min(measured) >= GOAL
    print(f"\nleast ratio of one worker to the step: {min(measured):.2f}, goal {GOAL}: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())

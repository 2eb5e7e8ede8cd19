"""Time and size of the files that `ifkd detect` writes for a scene with many objects.

    python benchmarks/scene_outputs.py [--objects 10000] [--side 10000] [--rounds 3]

The scene has three bands of 8 bits in blocks of 512 pixels. The objects are boxes of 10 to 60 pixels at random places
in it, with 20 classes. Each figure is the median of the rounds, in seconds of a CPU core, which other work on the
machine hardly changes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from deploy.engines.engine import EngineInfo
from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene, gdal_environment
from deploy.scene.result import SceneResult
from deploy.scene.scene_run import OVERVIEW_PX
from deploy.scene.settings import DetectionSettings
from deploy.scene.write.crops import write_crops
from deploy.scene.write.file_names import CROPS_FOLDER, DETECTION_FILES, MAP_FILE
from deploy.scene.write.map_page import write_page
from deploy.scene.write.writers import write_results
from ifkd.core.detections import Detections
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid

BLOCK_PX, TILE_PX = 512, 640
CLASSES = tuple(f"class {number}" for number in range(20))


def write_scene(path: Path, side: int) -> None:
    """Write a scene of coarse noise."""
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", tiled=True, blockxsize=BLOCK_PX,
        blockysize=BLOCK_PX, compress="deflate", zlevel=1, crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0.0, 390000.0, 0.0, -0.5, 5060000.0),
    ) as dataset:  # fmt: skip
        for top in range(0, side, BLOCK_PX):
            rows = min(BLOCK_PX, side - top)
            noise = rng.integers(20, 60, (3, 64, side // 8 + 1), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
            dataset.write(noise[:, :rows, :side], window=Window(0, top, side, rows))


def make_result(scene: Scene, objects: int) -> SceneResult:
    """Return a result with random objects."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, scene.size[0] - 60, (objects, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (objects, 2))], axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0.3, 1.0, objects).astype(np.float32))[::-1].copy()
    merge = MergeSettings(method="border", metric="iou", threshold=0.5, edge_tolerance_px=2.0, class_agnostic_iou=0.8)
    return SceneResult(
        detections=Detections(boxes, scores, rng.integers(0, len(CLASSES), objects)),
        tiles=np.zeros(objects, np.int64),
        scene=scene.info,
        engine=EngineInfo(
            "onnxruntime", "0", "cpu", "fp32", "model.onnx", "f" * 64, (TILE_PX, TILE_PX), 1, 300, CLASSES
        ),
        settings=DetectionSettings(scale=1.0, overlap_px=96, postprocess=PostprocessConfig(), merge=merge),
        grid=TileGrid(scene.size, (TILE_PX, TILE_PX), 96),
        category_ids=tuple(range(1, len(CLASSES) + 1)),
        empty=0,
        unreadable=(),
    )


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """Return the median CPU time of several calls."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> None:
    """Write every file several times, and print its time and size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, gdal_environment():
        folder = Path(name)
        write_scene(folder / "scene.tif", options.side)
        with Scene(folder / "scene.tif") as scene:
            result = make_result(scene, options.objects)
            print(f"{options.objects} objects in {options.side} x {options.side} px, median of {options.rounds} rounds")
            seconds = median_seconds(result.sizes_m, options.rounds)
            print(f"  {'sizes on the ground':<24}{seconds:7.2f} s")
            for form, file in DETECTION_FILES.items():
                seconds = median_seconds(lambda form=form: write_results(result, folder, [form]), options.rounds)
                print(f"  {file:<24}{seconds:7.2f} s {(folder / file).stat().st_size / 1e6:8.2f} MB")
            overview = scene.overview(OVERVIEW_PX).pixels
            seconds = median_seconds(lambda: write_page(result, overview, folder), options.rounds)
            print(f"  {MAP_FILE:<24}{seconds:7.2f} s {(folder / MAP_FILE).stat().st_size / 1e6:8.2f} MB")
            for count in (100, options.objects):
                seconds = median_seconds(lambda count=count: write_crops(result, scene, folder, limit=count), 1)
                size = sum(path.stat().st_size for path in (folder / CROPS_FOLDER).iterdir())
                print(f"  {f'{count} crops':<24}{seconds:7.2f} s {size / 1e6:8.2f} MB")


if __name__ == "__main__":
    main()

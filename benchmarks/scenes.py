"""Compare detection in scenes with SAHI and supervision: throughput, accuracy, memory, merge and start time.

    pip install '.[cpu,benchmark]'      # an environment of its own: both bring OpenCV
    python benchmarks/scenes.py --bundle BUNDLE [--scene SCENE --ground-truth LABELS] [--only merge memory]

Without --scene, it uses the scene of `ifkd data synth configs/demo_data.toml --out runs/scenes_benchmark`, which is
created if it is missing. All three use the same weights, tiles, overlap and thresholds: the other libraries once
with our ONNX Runtime session, and once with the checkpoint in torch, as in their own wrappers; SAHI's additional
prediction on the entire scene is disabled. Each value is printed with its goal; exit code 1 if a goal is missed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from figure import Figure
from scene_rivals import RIVAL_MERGES, detect_with_sahi, detect_with_supervision

from deploy.bench.system_monitor import process_peak_mb
from deploy.engines import open_engine
from deploy.engines.engine import EngineInfo, FakeEngine
from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from deploy.scene.read.scene import CACHE_BYTES, Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.scene_score import read_ground_truth
from deploy.scene.settings import DetectionSettings, grid_for, settings_for
from deploy.scene.write.writers import write_results
from export.bundle.bundle import Bundle, open_bundle
from ifkd.core.detections import Array, Detections
from ifkd.core.environment import usable_cores
from ifkd.core.files import write_json
from ifkd.core.oriented_boxes import envelopes, from_upright
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid
from ifkd.imagery.image_files import resize

SECTIONS = ("throughput", "accuracy", "memory", "merge", "start")
ROUNDS = 3


def seconds_of(work: Callable[[], Any], *, rounds: int = ROUNDS) -> float:
    """Return the median time of some calls, seconds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def throughput(bundle: Bundle, path: Path) -> list[Figure]:
    """Return MPix/s of the three libraries, and the time of the pipeline relative to the engine's.

    They run at the bundle's scale and, if that resamples the scene, also at scale 1.
    """
    settings = settings_for(bundle.manifest)
    figures = throughput_at(bundle, path, settings)
    if settings.scale != 1.0:
        figures += throughput_at(bundle, path, settings.model_copy(update={"scale": 1.0}))
    return figures


def throughput_at(bundle: Bundle, path: Path, settings: DetectionSettings) -> list[Figure]:
    """Return MPix/s of the three libraries at one scale, and the time of the pipeline relative to the engine's."""
    figures = []
    how = f"scale {settings.scale:g}"
    with Scene(path) as scene:
        megapixels = scene.size[0] * scene.size[1] / 1e6
        grid = grid_for(scene.size, bundle.manifest.input.tile_px, settings)
    precisions = [name for name in ("fp32", "int8-cpu") if bundle.find("onnx", name)]  # type: ignore[arg-type]
    rivals: dict[str, float] = {}
    for precision in precisions:
        with open_engine(bundle, precision=precision) as engine:  # type: ignore[arg-type]

            def ours(engine: Any = engine) -> None:
                with Scene(path) as scene:
                    detect_scene(engine, scene, settings)

            taken = seconds_of(ours)
            figures.append(Figure("throughput", f"{how}: ours, {precision}", megapixels / taken, "MPix/s"))
            alone = engine_seconds(engine, path, grid)
            figures.append(
                Figure("throughput", f"{how}: wall time relative to {len(grid)} tiles of the engine alone, {precision}",
                       taken / alone, "x", at_most=1.08 if precision == "fp32" else None)
            )  # fmt: skip
            if precision == "fp32":
                rivals |= rivals_seconds(engine, "on our ONNX Runtime engine", path, settings, grid)
                with open_engine(bundle, backend="torch") as checkpoint:
                    rivals |= rivals_seconds(checkpoint, "on the checkpoint in torch", path, settings, grid)
                figures += [
                    Figure("throughput", f"{how}: {name}, fp32", megapixels / seconds, "MPix/s")
                    for name, seconds in rivals.items()
                ]
            goals = {"fp32": {"SAHI": 2.2, "supervision": 1.6}, "int8-cpu": {"SAHI": 6.0}}[precision]
            figures += [
                Figure(
                    "throughput",
                    f"{how}: ours {precision} relative to {name} fp32",
                    seconds / taken,
                    "x",
                    at_least=goal,
                )
                for name, seconds in rivals.items()
                for rival, goal in goals.items()
                if name.startswith(rival)
            ]
    return figures


def rivals_seconds(engine: Any, how: str, path: Path, settings: DetectionSettings, grid: TileGrid) -> dict[str, float]:
    """Return the time of SAHI and of supervision with an engine; `how` describes the engine."""
    return {
        f"SAHI {how}": seconds_of(lambda: detect_with_sahi(engine, path, settings, grid)),
        f"supervision {how}": seconds_of(lambda: detect_with_supervision(engine, path, settings, grid)),
    }


def engine_seconds(engine: Any, path: Path, grid: TileGrid) -> float:
    """Return the time of the engine alone for the tiles of a grid, measured with full batches of real pixels."""
    pixels = []
    with Scene(path) as scene:
        for read in read_tiles(scene, grid):
            if read.patch is not None:
                pixels.append(resize(read.patch.pixels, engine.info.tile_px).transpose(2, 0, 1))
            if len(pixels) == 8 * engine.info.max_batch:
                break
    batches = [np.stack(pixels[n : n + engine.info.max_batch]) for n in range(0, len(pixels), engine.info.max_batch)]
    engine.infer(batches[0])
    return seconds_of(lambda: [engine.infer(batch) for batch in batches]) / len(pixels) * len(grid)


def accuracy(bundle: Bundle, path: Path, labels: Path) -> list[Figure]:
    """Return AP50 of the merges on the same candidates."""
    settings = settings_for(bundle.manifest)
    with tempfile.TemporaryDirectory() as folder, Scene(path) as scene, open_engine(bundle) as engine:
        with RowJournal(Path(folder) / "journal", {}) as journal:
            result = detect_scene(engine, scene, settings, journal=journal)
            candidates = TileDetections.concatenate([record.found for record in journal.records()])
        ground_truth = read_ground_truth(
            labels,
            scene=scene.info.name,
            size=scene.size,
            classes=bundle.manifest.classes,
            georeference=scene.info.georeference,
        )
    score_threshold = settings.postprocess.score_threshold
    found: dict[str, Detections] = {"ours, border": result.detections}
    for method in ("nms", "nmm", "greedy_nmm"):
        merge_settings = settings.merge.model_copy(update={"method": method})
        found[f"ours, {method}"] = merge(candidates, merge_settings).detections
    for name, rival in RIVAL_MERGES.items():
        found[name] = rival(candidates.detections, bundle.manifest.classes)
    scores = {name: ground_truth.score(one, score_threshold=score_threshold) for name, one in found.items()}
    best = max((scores[name].ap50 or 0.0) for name in RIVAL_MERGES)
    return [
        Figure("accuracy", f"scene AP50, {name}", score.ap50 or 0.0, f"(F1 {score.f1 or 0.0:.3f})",
               at_least=best if name == "ours, border" else None)
        for name, score in scores.items()
    ]  # fmt: skip


def memory() -> list[Figure]:
    """Return peak memory on a small and on a large scene: real reading, merge and writing, a fake engine."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in (8192, 32768):
            path = Path(folder) / f"{side}.tif"
            write_large_scene(path, side)
            command = [sys.executable, __file__, "--child-memory", str(path)]
            peaks[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 2**20
            path.unlink()
    return [
        Figure("memory", "peak, 8192x8192", peaks[8192], "MiB"),
        Figure("memory", "peak, 32768x32768", peaks[32768], "MiB", at_most=1024),
        Figure("memory", "large relative to small", peaks[32768] / peaks[8192], "x", at_most=1.25),
    ]


def write_large_scene(path: Path, side: int) -> None:
    """Write a GeoTIFF of `side` pixels squared, three bands, tiled and compressed, with pixels that differ."""
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:32633", BIGTIFF="YES",
        transform=Affine(1, 0, 400_000, 0, -1, 5_000_000), tiled=True, blockxsize=512, blockysize=512,
        compress="deflate", zlevel=1, interleave="pixel",
    ) as dataset:  # fmt: skip
        for top in range(0, side, 512):
            row = np.repeat(rng.integers(20, 60, (3, 32, side // 16), np.uint8).repeat(16, axis=1), 16, axis=2)
            dataset.write(row, window=rasterio.windows.Window(0, top, side, 512))


def memory_child(path: Path) -> int:
    """Detect in a scene, write all map files, and return the peak of this process's memory in bytes."""
    boxes = np.array([[40, 40, 80, 60], [200, 300, 230, 380], [470, 100, 512, 130]], np.float32)
    detections = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0], np.int64))
    info = EngineInfo("fake", "0", "nowhere", "fp32", "none", "0" * 64, (512, 512), 8, 50, ("one", "two"))
    settings = DetectionSettings(
        scale=1.0,
        overlap_px=96,
        postprocess=PostprocessConfig(score_threshold=0.3),
        merge=MergeSettings(class_agnostic_iou=0.8),
    )
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        tempfile.TemporaryDirectory() as folder,
        Scene(path) as scene,
        RowJournal(Path(folder) / "journal", {}) as journal,
    ):
        result = detect_scene(FakeEngine(info, lambda _: detections), scene, settings, journal=journal)
        write_results(result, Path(folder), ("geojson", "gpkg", "coco", "csv"))
    return round(process_peak_mb() * 1e6)


def merging() -> list[Figure]:
    """Return the time of merging many candidates, and that of the rivals' merges on fewer."""
    figures = []
    merge_settings = MergeSettings(class_agnostic_iou=0.8)
    taken = {}
    for n in (100_000, 1_000_000):
        found = many_candidates(n)
        taken[n] = seconds_of(lambda found=found: merge(found, merge_settings))
        goal = 5.0 if n == 1_000_000 else None
        figures.append(Figure("merge", f"{len(found)} candidates, ours", taken[n], "s", at_most=goal))
    figures.append(Figure("merge", "ten times the input", taken[1_000_000] / taken[100_000], "x", at_most=13.0))
    turned = many_oriented_candidates(100_000)
    start = time.process_time()
    merge(turned, merge_settings)
    cpu_s = time.process_time() - start
    figures.append(Figure("merge", f"{len(turned)} oriented candidates, ours", cpu_s, "CPU s", at_most=3.0))
    few = many_candidates(33_000)
    figures.append(Figure("merge", f"{len(few)} candidates, ours", seconds_of(lambda: merge(few, merge_settings)), "s"))
    classes = tuple(map(str, range(7)))
    for name, rival in RIVAL_MERGES.items():
        if not name.startswith("SAHI"):  # supervision compares all pairs, which takes tens of gigabytes here
            continue
        slow = seconds_of(lambda rival=rival: rival(few.detections, classes), rounds=1)
        figures.append(Figure("merge", f"{len(few)} candidates, {name}", slow, "s"))
    return figures


def many_candidates(n: int) -> TileDetections:
    """Return about `n` detections of seven classes, as in overlapping tiles of a crowded scene."""
    rng = np.random.default_rng(0)
    objects = round(n / 1.65)
    side = int(np.sqrt(objects * 2400))
    grid = TileGrid((side, side), (512, 512), 96)
    centers = rng.uniform(0, side, (objects, 2))
    long, wide = rng.uniform(8, 60, objects), rng.uniform(6, 24, objects)
    across = rng.random(objects) < 0.5
    sides = np.where(across[:, None], np.stack([long, wide], axis=1), np.stack([wide, long], axis=1))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).clip(0, side)
    labels = rng.integers(0, 7, objects)
    starts = np.array(grid.lefts)
    parts = []
    for row, top in enumerate(grid.tops):
        here = (boxes[:, 3] > top) & (boxes[:, 1] < top + 512)
        first = np.searchsorted(starts + 512, boxes[here, 0], side="right")
        count = np.searchsorted(starts, boxes[here, 2], side="left") - first
        own = np.repeat(np.flatnonzero(here), count)
        column = np.repeat(first, count) + np.arange(len(own)) - np.repeat(np.cumsum(count) - count, count)
        low = np.stack([starts[column], np.full(len(own), top)], axis=1)
        seen = boxes[own] + rng.normal(0, 1, (len(own), 4))
        seen = np.concatenate([np.maximum(seen[:, :2], low), np.minimum(seen[:, 2:], low + 512)], axis=1)
        good = (seen[:, 2:] - seen[:, :2] > 2).all(axis=1)
        bounds = np.concatenate(
            [np.where(low > 0, low, -np.inf), np.where(low + 512 < side, low + 512, np.inf)], axis=1
        )
        scores = rng.uniform(0.3, 1, len(own)).astype(np.float32)
        found = Detections(seen[good].astype(np.float32), scores[good], labels[own[good]])
        parts.append(TileDetections(found, (row * len(starts) + column[good]).astype(np.int64), bounds[good]))
    return TileDetections.concatenate(parts)


def many_oriented_candidates(n: int) -> TileDetections:
    """Return `many_candidates` as oriented boxes, each as all tiles see it, with directions that change slowly."""
    found = many_candidates(n)
    detections, bounds = found.detections, found.bounds.astype(np.float32)
    oriented = from_upright(detections.boxes)
    oriented[:, 4] = oriented[:, :2].sum(axis=1) / 10.0 % 180.0
    around = envelopes(oriented)
    boxes = np.concatenate([np.maximum(around[:, :2], bounds[:, :2]), np.minimum(around[:, 2:], bounds[:, 2:])], axis=1)
    turned = Detections(boxes, detections.scores, detections.labels, oriented)
    return TileDetections(turned, found.tiles, found.bounds)


def starting(bundle: Bundle, path: Path) -> list[Figure]:
    """Return the time of `ifkd detect --help`, and the time until the first inference."""
    help_s = seconds_of(
        lambda: subprocess.run([sys.executable, "-m", "ifkd", "detect", "--help"], check=True, capture_output=True)
    )

    def first_tile() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child-start", str(bundle.path), str(path), folder]
            subprocess.run(command, check=True, capture_output=True)

    return [
        Figure("start", "ifkd detect --help", help_s, "s", at_most=0.5),
        Figure("start", "first tile under inference", seconds_of(first_tile), "s", at_most=3.0),
    ]


def start_child(bundle: str, scene: str, folder: str) -> None:
    """Run `ifkd detect` until the first inference."""
    from deploy.cli.main import main as ifkd  # noqa: PLC0415 - its import is part of the start
    from deploy.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415 - its import is part of the start

    def stop(_: OnnxRuntimeEngine, tiles: Array) -> None:
        os._exit(0 if len(tiles) else 1)

    OnnxRuntimeEngine._run = stop  # type: ignore[assignment,method-assign]  # noqa: SLF001 - stops at the first inference
    ifkd(["detect", bundle, scene, "--out", folder])
    os._exit(1)


def own_scene() -> tuple[Path, Path]:
    """Return the generator's scene and its labels, created if they are missing."""
    folder = Path("runs/scenes_benchmark")
    scene = folder / "scenes" / "scene_00.tif"
    if not scene.is_file():
        command = [sys.executable, "-m", "ifkd", "data", "synth", "configs/demo_data.toml", "--out", str(folder)]
        subprocess.run(command, check=True)
    return scene, scene.with_suffix(".json")


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--ground-truth", type=Path)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path("scenes.json"))
    parser.add_argument("--child-memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child-start", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child_memory:
        print(memory_child(options.child_memory))
        return 0
    if options.child_start:
        start_child(*options.child_start)
    needs_bundle = {"throughput", "accuracy", "start"} & set(options.only)
    if needs_bundle and options.bundle is None:
        parser.error(f"{', '.join(sorted(needs_bundle))} need --bundle")
    scene, ground_truth = options.scene, options.ground_truth
    if needs_bundle and scene is None:
        scene, ground_truth = own_scene()
    bundle = open_bundle(options.bundle) if needs_bundle else None
    figures: list[Figure] = []
    for section in options.only:
        if section == "accuracy" and ground_truth is None:
            print("  accuracy  skipped: no --ground-truth")
            continue
        work: dict[str, Callable[[], list[Figure]]] = {
            "throughput": lambda: throughput(bundle, scene),  # type: ignore[arg-type]
            "accuracy": lambda: accuracy(bundle, scene, ground_truth),  # type: ignore[arg-type]
            "memory": memory,
            "merge": merging,
            "start": lambda: starting(bundle, scene),  # type: ignore[arg-type]
        }
        new = work[section]()
        figures += new
        print("\n".join(figure.line() for figure in new), flush=True)
    record = {"cores": usable_cores(), "bundle": str(options.bundle), "scene": str(scene)}
    write_json(options.out, {**record, "figures": [{**asdict(one), "passed": one.passed} for one in figures]})
    return int(not all(figure.passed for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

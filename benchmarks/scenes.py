"""Compare detection in scenes with SAHI and supervision: throughput, accuracy, memory, merge and start time.

    pip install '.[cpu,benchmark]'      # an environment of its own: both bring OpenCV
    python benchmarks/scenes.py --bundle BUNDLE [--scene SCENE ... --ground-truth LABELS] [--only merge memory]

Throughput is that of the first scene. Without --scene, it uses the scene of `ifkd data synth configs/demo_data.toml
--out runs/scenes_benchmark`, which is created if it is missing. Our engines: ONNX Runtime and, where it is installed,
OpenVINO; a file that OpenVINO computes in bfloat16 counts for the goal of FP32 if --parity names the result of `ifkd
parity --backend openvino --precision fp16`, and this passed. All three libraries use the same weights, tiles, overlap
and thresholds: the others once with our ONNX Runtime session, and once with the checkpoint in torch, as in their own
wrappers; SAHI's additional prediction on the entire scene is disabled. Each value is printed with its goal; exit code 1
if a goal is missed.
"""

import argparse
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from figure import Figure
from scene_merging import ROUNDS, merging, seconds_of
from scene_rivals import RIVAL_MERGES, detect_with_sahi, detect_with_supervision

from deploy.bench.system_monitor import process_peak_mb
from deploy.engines import open_engine
from deploy.engines.engine import Backend, Engine, EngineInfo, FakeEngine
from deploy.engines.openvino_engine import computes_in_bfloat16
from deploy.parity.parity_result import Parity
from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from deploy.scene.read.scene import CACHE_BYTES, Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.scene_score import SceneScore, read_ground_truth
from deploy.scene.settings import DetectionSettings, grid_for, settings_for
from deploy.scene.write.writers import write_results
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.manifest import Precision
from ifkd.core.config import read_versioned
from ifkd.core.detections import Array, Detections
from ifkd.core.environment import usable_cores
from ifkd.core.files import write_json
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid

OURS, TORCH = "on our ONNX Runtime engine", "on the checkpoint in torch"
OWN_MERGE = "ours, border"
SECTIONS = ("throughput", "accuracy", "memory", "merge", "start")


def throughput(bundle: Bundle, path: Path, accurate: Parity | None) -> list[Figure]:
    """Return MPix/s of the three libraries, and the time of the pipeline relative to the engine's.

    They run at the bundle's scale and, if that resamples the scene, also at scale 1.
    """
    settings = settings_for(bundle.manifest)
    figures = throughput_at(bundle, path, settings, accurate)
    if settings.scale != 1.0:
        figures += throughput_at(bundle, path, settings.model_copy(update={"scale": 1.0}), accurate)
    return figures


def throughput_at(bundle: Bundle, path: Path, settings: DetectionSettings, accurate: Parity | None) -> list[Figure]:
    """Return MPix/s of the three libraries at one scale, and the time of the pipeline relative to the engine's."""
    figures: list[Figure] = []
    how = f"scale {settings.scale:g}"
    with Scene(path) as scene:
        megapixels = scene.size[0] * scene.size[1] / 1e6
        grid = grid_for(scene.size, bundle.manifest.input.tile_px, settings)
    rivals: dict[str, float] = {}
    ours: dict[tuple[Backend, Precision], float] = {}
    for backend, precision in engines_of(bundle):
        with open_engine(bundle, backend=backend, precision=precision) as engine:
            name = f"{backend} {precision}{' in bfloat16' if engine.info.compute_type == 'bf16' else ''}"

            def detected(engine: Any = engine) -> None:
                with Scene(path) as scene:
                    detect_scene(engine, scene, settings)

            taken, alone = seconds_in_turns(detected, partial(infer_tiles, engine, engine_tiles(engine, path, grid)))
            ours[backend, precision] = taken
            figures.append(Figure("throughput", f"{how}: ours, {name}", megapixels / taken, "MPix/s"))
            wall = f"{how}: wall time relative to {len(grid)} tiles of the engine alone, {name}"
            goal = 1.2 if settings.scale != 1.0 else 1.08
            figures.append(
                Figure("throughput", wall, taken / alone, "x", at_most=goal if precision == "fp32" else None)
            )
            if (backend, precision) == ("onnxruntime", "fp32"):
                rivals |= rivals_seconds(engine, OURS, path, settings, grid)
                with open_engine(bundle, backend="torch") as checkpoint:
                    rivals |= rivals_seconds(checkpoint, TORCH, path, settings, grid)
    figures += [Figure("throughput", f"{how}: {name}", megapixels / one, "MPix/s") for name, one in rivals.items()]
    accepted = ("openvino", "fp16") if accurate is not None and accurate.passed else None
    classes = {
        "FP32": [one for key, one in ours.items() if key[1] == "fp32" or key == accepted],
        "INT8": [one for key, one in ours.items() if key[1] == "int8-cpu"],
    }
    goals = [("FP32", f"SAHI {TORCH}", 4.5), ("FP32", f"supervision {TORCH}", 1.6), ("INT8", f"SAHI {TORCH}", 7.0)]
    figures += [
        Figure("throughput", f"{how}: best {kind} relative to {name}", rivals[name] / min(taken), "x", at_least=goal)
        for kind, name, goal in goals
        if (taken := classes[kind])
    ]
    same = rivals[f"SAHI {OURS}"] / ours["onnxruntime", "fp32"]
    return [*figures, Figure("throughput", f"{how}: ours relative to SAHI {OURS}", same, "x", at_least=1.6)]


def engines_of(bundle: Bundle) -> list[tuple[Backend, Precision]]:
    """Return the engines that run here: FP32, INT8, and FP16 if OpenVINO computes it in bfloat16."""
    found: list[tuple[Backend, Precision]] = [("onnxruntime", "fp32"), ("onnxruntime", "int8-cpu")]
    if importlib.util.find_spec("openvino") is not None:
        found.append(("openvino", "int8-cpu"))
        if computes_in_bfloat16(bundle.manifest, "fp16"):
            found.append(("openvino", "fp16"))
    return [(backend, precision) for backend, precision in found if bundle.find("onnx", precision)]


def rivals_seconds(engine: Any, how: str, path: Path, settings: DetectionSettings, grid: TileGrid) -> dict[str, float]:
    """Return the time of SAHI and of supervision with an engine; `how` describes the engine."""
    return {
        f"SAHI {how}": seconds_of(lambda: detect_with_sahi(engine, path, settings, grid)),
        f"supervision {how}": seconds_of(lambda: detect_with_supervision(engine, path, settings, grid)),
    }


@dataclass(frozen=True, slots=True, eq=False)
class EngineTiles:
    """Batches of some tiles of a scene, and the number of all tiles relative to them."""

    batches: list[Array]
    factor: float


def engine_tiles(engine: Engine, path: Path, grid: TileGrid) -> EngineTiles:
    """Return full batches of real pixels for the engine alone."""
    pixels, most = [], 8 * engine.info.max_batch
    with Scene(path) as scene:
        for read in read_tiles(scene, grid, tile_px=engine.info.tile_px):
            if read.patch is not None:
                pixels.append(np.ascontiguousarray(read.patch.pixels.transpose(2, 0, 1)))
            if len(pixels) == most:
                break
    size = engine.info.max_batch
    return EngineTiles([np.stack(pixels[n : n + size]) for n in range(0, len(pixels), size)], len(grid) / len(pixels))


def infer_tiles(engine: Engine, tiles: EngineTiles) -> float:
    """Run the engine on tiles, and return the number of all tiles relative to them."""
    for batch in tiles.batches:
        engine.infer(batch)
    return tiles.factor


def seconds_in_turns(work: Callable[[], Any], alone: Callable[[], float]) -> tuple[float, float]:
    """Return the median time of `work` and of `alone`, times the factor that it returns, measured in turns."""
    alone()
    taken: list[float] = []
    others: list[float] = []
    for _ in range(ROUNDS):
        taken.append(seconds_of(work, rounds=1))
        start = time.perf_counter()
        factor = alone()
        others.append((time.perf_counter() - start) * factor)
    return statistics.median(taken), statistics.median(others)


def accuracy(bundle: Bundle, paths: Sequence[Path], labels: Path) -> list[Figure]:
    """Return AP50 of the merges on the same candidates, by scene and on average."""
    figures, found = [], [merged_scores(bundle, path, labels) for path in paths]
    for path, scores in zip(paths, found, strict=True):
        figures += [
            Figure("accuracy", f"{path.name}: AP50, {name}", score.ap50 or 0.0, f"(F1 {score.f1 or 0.0:.3f})")
            for name, score in scores.items()
        ]
    ap50 = {name: [scores[name].ap50 or 0.0 for scores in found] for name in found[0]}
    best = [max(ap50[name][n] for name in RIVAL_MERGES) for n in range(len(paths))]
    reached = sum(own >= other for own, other in zip(ap50[OWN_MERGE], best, strict=True))
    means = {name: statistics.fmean(values) for name, values in ap50.items()}
    highest = max(means[name] for name in RIVAL_MERGES)
    return [
        *figures,
        Figure("accuracy", f"scenes of {len(paths)} where {OWN_MERGE} is not below SAHI and supervision", reached, "",
               at_least=math.ceil(0.75 * len(paths))),
        *(
            Figure("accuracy", f"mean AP50, {name}", value, "", at_least=highest if name == OWN_MERGE else None)
            for name, value in means.items()
        ),
    ]  # fmt: skip


def merged_scores(bundle: Bundle, path: Path, labels: Path) -> dict[str, SceneScore]:
    """Return the scores of the merges of a scene's candidates, by name."""
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
    found: dict[str, Detections] = {OWN_MERGE: result.detections}
    each_class = settings.merge.model_copy(update={"class_agnostic_iou": 1.0})
    found["ours, border, each class alone, as the others merge"] = merge(candidates, each_class).detections
    for method in ("nms", "nmm", "greedy_nmm"):
        merge_settings = settings.merge.model_copy(update={"method": method})
        found[f"ours, {method}"] = merge(candidates, merge_settings).detections
    for name, rival in RIVAL_MERGES.items():
        found[name] = rival(candidates.detections, bundle.manifest.classes)
    threshold = settings.postprocess.score_threshold
    return {name: ground_truth.score(one, score_threshold=threshold) for name, one in found.items()}


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
    parser.add_argument("--scene", type=Path, nargs="+")
    parser.add_argument("--ground-truth", type=Path)
    parser.add_argument("--parity", type=Path, help="parity of OpenVINO with the FP16 file, parity.json")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes.json"))
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
    scenes, ground_truth = options.scene or [], options.ground_truth
    if needs_bundle and not scenes:
        scene, ground_truth = own_scene()
        scenes = [scene]
    parity = read_versioned(options.parity, Parity, hint="Run `ifkd parity` again.") if options.parity else None
    bundle = open_bundle(options.bundle) if needs_bundle else None
    figures: list[Figure] = []
    for section in options.only:
        if section == "accuracy" and ground_truth is None:
            print("  accuracy  skipped: no --ground-truth")
            continue
        work: dict[str, Callable[[], list[Figure]]] = {
            "throughput": lambda: throughput(bundle, scenes[0], parity),  # type: ignore[arg-type]
            "accuracy": lambda: accuracy(bundle, scenes, ground_truth),  # type: ignore[arg-type]
            "memory": memory,
            "merge": merging,
            "start": lambda: starting(bundle, scenes[0]),  # type: ignore[arg-type]
        }
        new = work[section]()
        figures += new
        print("\n".join(figure.line() for figure in new), flush=True)
    record = {"cores": usable_cores(), "bundle": str(options.bundle), "scenes": [str(one) for one in scenes]}
    write_json(options.out, {**record, "figures": [{**asdict(one), "passed": one.passed} for one in figures]})
    return int(not all(figure.passed for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

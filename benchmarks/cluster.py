"""Measure batch runs on several engines: the overhead of Ray, the time model of docs/cluster.md, the driver's memory.

    python benchmarks/cluster.py --bundle BUNDLE [--only overhead memory] [--scenes 8] [--side 8192]

Scenes are created if they are missing. `overhead` runs them in one process with all cores, and on Ray with one
engine per core; the files must be equal byte by byte. `model` runs them with one engine of one core, and compares
the prediction of the time model with the measured time, for one engine and for all. Each value is printed with its
goal; exit code 1 if a goal is missed.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from figure import Figure

from deploy.bench.system_monitor import process_peak_mb
from deploy.engines.engine import EngineInfo, FakeEngine
from deploy.scene.write.file_names import RESULT_FILES
from ifkd.core.detections import Array, Detections
from ifkd.core.environment import describe_environment, usable_cores
from ifkd.core.files import write_json

SECTIONS = ("overhead", "model", "memory")
STAGES = ("read", "preprocess", "infer", "decode", "journal", "merge", "write")


@dataclass(frozen=True, slots=True)
class Run:
    """A run of `ifkd detect` over the scenes."""

    out: Path
    wall_s: float
    """Duration of the command, including imports and the start of Ray."""
    summary: dict[str, Any]

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage, over all scenes and engines."""
        entries = self.summary["entries"]
        return {stage: sum(entry["seconds"].get(stage, 0.0) for entry in entries) for stage in STAGES}


def write_scene(path: Path, side: int, seed: int) -> None:
    """Write a GeoTIFF of `side` pixels squared, three bands, tiled and compressed, of coarse noise."""
    rng = np.random.default_rng(seed)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000), tiled=True, blockxsize=512, blockysize=512,
        compress="deflate", zlevel=1, interleave="pixel",
    ) as dataset:  # fmt: skip
        for top in range(0, side, 512):
            rows = min(512, side - top)
            grain = rng.integers(20, 90, (3, -(-rows // 4), -(-side // 4)), np.uint8)
            pixels = grain.repeat(4, axis=1).repeat(4, axis=2)[:, :rows, :side]
            dataset.write(pixels, window=rasterio.windows.Window(0, top, side, rows))


def scenes_of(folder: Path, count: int, side: int) -> list[Path]:
    """Return scenes, created if they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"waves_{side}_{number:03d}.tif" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_scene(path.with_suffix(".part"), side, number)
            path.with_suffix(".part").rename(path)
    return paths


def detect(bundle: Path, scenes: Sequence[Path], out: Path, *options: str) -> Run:
    """Run `ifkd detect` in a process of its own."""
    command = [sys.executable, "-m", "ifkd", "detect", str(bundle), *map(str, scenes), "--out", str(out), *options]
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return Run(out, time.perf_counter() - start, json.loads((out / "summary.json").read_text()))


def differing(one: Path, other: Path) -> int:
    """Return the number of files that differ between two runs."""
    files = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.name in RESULT_FILES}
        for out in (one, other)
    ]
    return sum(files[0].get(name) != files[1].get(name) for name in {*files[0], *files[1]})


def overhead(bundle: Path, scenes: Sequence[Path], folder: Path) -> list[Figure]:
    """Return the time on Ray relative to that of one process with the same number of cores."""
    cores = usable_cores()
    alone = detect(bundle, scenes, folder / "alone", "--threads", str(cores))
    shared = detect(bundle, scenes, folder / "shared", "--cluster", "ray")
    rate = shared.summary["megapixels_per_second"]
    return [
        Figure("overhead", f"one process, {cores} threads", alone.wall_s, "s"),
        Figure("overhead", f"Ray, {cores} engines of one core", shared.wall_s, "s"),
        Figure(
            "overhead", "Ray relative to one process, entire command", shared.wall_s / alone.wall_s, "x", at_most=1.10
        ),
        Figure("overhead", "start of Ray and the engines", start_of(shared), "s"),
        Figure("overhead", "throughput on Ray", rate, "MPix/s"),
        Figure("overhead", "files that differ", differing(alone.out, shared.out), "files", at_most=0),
    ]


def start_of(run: Run) -> float:
    """Return the seconds of a run before its first scene and after its last."""
    return run.wall_s - run.summary["seconds"]


def model(bundle: Path, scenes: Sequence[Path], folder: Path) -> list[Figure]:
    """Return the constants of the time model, from one engine of one core, and its error for one and all engines."""
    cores = usable_cores()
    one = detect(bundle, scenes, folder / "one", "--cluster", "ray", "--cores-per-actor", str(cores), "--threads", "1")
    two = detect(bundle, scenes, folder / "two", "--cluster", "ray")
    megapixels, tiles = one.summary["megapixels"], one.summary["tiles"]
    figures = [Figure("model", f"{stage}, one engine", seconds, "s in total") for stage, seconds in one.stages.items()]
    stages = one.stages
    figures += [
        Figure("model", "reading", megapixels / stages["read"], "MPix/s"),
        Figure("model", "preparing", tiles / stages["preprocess"], "tiles/s"),
        Figure("model", "engine, one core", tiles / stages["infer"], "tiles/s"),
        Figure("model", "decoding", tiles / stages["decode"], "tiles/s"),
        Figure("model", "writing", stages["write"] / len(scenes), "s per scene"),
    ]
    for run, engines in ((one, 1), (two, cores)):
        predicted_s = predict(stages, engines=engines, cores=cores)
        measured_s = run.summary["seconds"]
        figures += [
            Figure("model", f"{engines} engines, model", predicted_s, "s"),
            Figure("model", f"{engines} engines, measured", measured_s, "s"),
            Figure("model", f"{engines} engines, error", abs(predicted_s / measured_s - 1), "fraction", at_most=0.15),
        ]
    return figures


def predict(stages: dict[str, float], *, engines: int, cores: int) -> float:
    """Return the seconds of a run by the model of docs/cluster.md: its slowest stage, or all work over all cores."""
    reading = stages["read"] + stages["preprocess"]
    driver = stages["journal"] + stages["merge"] + stages["write"]
    return max(stages["infer"] / engines, reading / engines, driver, sum(stages.values()) / cores)


def memory() -> list[Figure]:
    """Return the driver's peak with few and with many scenes."""
    peaks = {}
    for count in (50, 200):
        command = [sys.executable, __file__, "--child-memory", str(count)]
        peaks[count] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        Figure("memory", "driver's peak, 50 scenes", peaks[50], "MB"),
        Figure("memory", "driver's peak, 200 scenes", peaks[200], "MB"),
        Figure("memory", "200 relative to 50", peaks[200] / peaks[50], "x", at_most=1.10),
    ]


def find_one(_: Array) -> Detections:
    """Return the same object for every tile."""
    return Detections(np.array([[4, 4, 20, 12]], np.float32), np.array([0.9], np.float32), np.array([0], np.int64))


def open_fake(_: Any, **__: Any) -> FakeEngine:
    """Return a fake engine."""
    return FakeEngine(EngineInfo("fake", "0", "nowhere", "fp32", "none", "0" * 64, (64, 64), 4, 5, ("one",)), find_one)


def memory_child(count: int) -> float:
    """Run tiny scenes on Ray, and return the peak of this process's memory, MB."""
    import deploy.engines  # noqa: PLC0415 - to be patched
    from deploy.cli.main import main as ifkd  # noqa: PLC0415

    deploy.engines.open_engine = functools.partial(open_fake)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = scenes_of(folder / "scenes", count, 256)
        (folder / "bundle").mkdir()
        manifest = {
            "schema_version": 2, "name": "fake", "created": "2026-01-01T00:00:00Z", "producer": "benchmark",
            "provenance": {}, "detector": {},
            "input": {"tile_px": [64, 64], "max_batch": 4}, "outputs": {"candidates": 5}, "classes": ["one"],
            "category_ids": [1], "files": {},
            "defaults": {"postprocess": {"score_threshold": 0.05, "iou_threshold": 0.5, "max_detections": 5},
                         "overlap_px": 16},
        }  # fmt: skip
        (folder / "bundle" / "model.json").write_text(json.dumps(manifest))
        command = [
            "detect",
            str(folder / "bundle"),
            *map(str, scenes),
            "--out",
            str(folder / "out"),
            "--cluster",
            "ray",
        ]
        with redirect_stdout(sys.stderr):
            if ifkd(command):
                raise SystemExit(1)
    return process_peak_mb()


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--side", type=int, default=8192, help="of a scene, pixels")
    parser.add_argument("--folder", type=Path, default=Path("runs/cluster_benchmark"), help="for scenes and results")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path("runs/cluster.json"))
    parser.add_argument("--child-memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child_memory:
        print(memory_child(options.child_memory))
        return 0
    if {"overhead", "model"} & set(options.only) and options.bundle is None:
        parser.error("overhead and model need --bundle")
    figures: list[Figure] = []
    for section in options.only:
        if section == "memory":
            new = memory()
        else:
            scenes = scenes_of(options.folder / "scenes", options.scenes, options.side)
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                new = {"overhead": overhead, "model": model}[section](options.bundle, scenes, Path(folder))
        figures += new
        print("\n".join(figure.line() for figure in new), flush=True)
    record = {
        "machine": describe_environment(),
        "bundle": str(options.bundle),
        "scenes": options.scenes,
        "side_px": options.side,
    }
    values = [
        {**asdict(one), "value": one.value if math.isfinite(one.value) else None, "passed": one.passed}
        for one in figures
    ]
    write_json(options.out, {**record, "figures": values})
    return int(not all(figure.passed for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

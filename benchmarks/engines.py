"""Benchmark all precisions of several detectors: export and build time, file size, loss of mAP and latency.

    python benchmarks/engines.py --out DIR --checkpoint A/best.safetensors B/best.safetensors …
    python benchmarks/engines.py --out DIR --latency         # latency of the bundles in DIR; needs an idle machine
    python benchmarks/engines.py --out DIR --nano            # tiny untrained detectors of all families; used by CI

The first command exports each checkpoint in all four precisions and builds the engines that need no GPU. The second
measures ONNX Runtime in each precision and torch, eager and compiled, in turns within one process. Each writes its
results to DIR and prints a table of all results there; the exit code is 1 if a goal is missed. With --nano, the outputs
are noise: files are built and run, and only the total time is measured.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import nn

from deploy.bench.latency import TimingConfig, sample_spread, timed_engine
from deploy.bench.speedup import engine_speedup
from deploy.engines import open_engine
from deploy.engines.engine import Engine
from deploy.engines.torch_engine import TorchEngine
from export.bundle.bundle import open_bundle
from export.bundle.manifest import Precision
from export.export_bundle import export_bundle
from export.export_plan import plan_export
from export.tensorrt.build import add_engine
from export.tiles import structured_noise
from ifkd.core.config import parse
from ifkd.core.detections import Array
from ifkd.core.environment import usable_cores
from ifkd.core.errors import IfkdError
from ifkd.core.files import write_json
from ifkd.core.timing import TimedCall, time_in_turns
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from ifkd.recipe import DetectorOptions, Family, Recipe

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-cpu")
ENGINES: tuple[Precision, ...] = ("fp32", "fp16", "int8")
STUDENTS = ("resnet18", "mobilenet_v2")
BUILD_RESULTS, LATENCY_RESULTS = "build.json", "latency.json"
EAGER, COMPILED = "torch eager", "torch.compile"
GOALS = {
    ("onnxruntime fp32", EAGER): {"resnet18": 1.2, "mobilenet_v2": 1.2},
    ("onnxruntime int8-cpu", "onnxruntime fp32"): {"resnet18": 2.5, "mobilenet_v2": 1.8},
}
"""(runtime, baseline) -> minimum speedup by student; the second is for RetinaNet."""
MAX_MAP_LOSS = 0.005
MAX_NANO_SECONDS = 360.0
TIMING = TimingConfig(warmup_s=1.0, min_s=12.0, min_samples=30, rounds=6)
NANO_IMAGES, NANO_PX = 6, 64


@dataclass(frozen=True, slots=True)
class Job:
    """An export with its engine builds."""

    checkpoint: Path
    folder: Path
    overrides: tuple[str, ...]
    accept_drift: bool = False
    """Ignore failed parity, because the outputs of an untrained network depend on its last bits."""


def build(job: Job) -> dict[str, Any]:
    """Export a checkpoint and build its engines; return times, sizes and the loss of INT8."""
    started = time.perf_counter()
    overrides = [f"precisions={list(PRECISIONS)}", *job.overrides]
    plan = plan_export(job.checkpoint, job.folder / "bundle", overrides=overrides, accept_drift=job.accept_drift)
    bundle = export_bundle(plan)
    export_seconds = time.perf_counter() - started
    engines = {}
    for precision in ENGINES:
        bundle, name, metadata = add_engine(bundle, builder="tensorrt_rtx", precision=precision)
        engines[precision] = {
            "seconds": metadata.build_seconds,
            "bytes": metadata.engine_bytes,
            "file": name,
            "builder": f"{metadata.builder} {metadata.builder_version}",
        }
    bundle.verify()
    manifest = bundle.manifest
    onnx = {record.precision: record.bytes for record in manifest.files.values() if record.kind == "onnx"}
    results = {
        "detector": manifest.detector["family"],
        "student": manifest.detector["backbone"],
        "detector_settings": manifest.detector,
        "tile_px": manifest.input.tile_px,
        "classes": manifest.classes,
        "export_seconds": export_seconds,
        "matched": {name: check.matched_fraction for name, check in manifest.checks.items()},
        "onnx_bytes": onnx,
        "engines": engines,
        "quantization": {
            name: {
                "map_loss": one.map_loss,
                "mean_ap": one.search[-1].mean_ap,
                "layers": one.layers,
                "float_layers": len(one.float_layers),
                "head_error": one.head_error,
                "decision": None if one.decision is None else one.decision.model_dump(mode="json"),
            }
            for name, one in manifest.quantization.items()
        },
    }
    write_json(job.folder / BUILD_RESULTS, results)
    return results


def run_all(folder: Path) -> None:
    """Run every ONNX file of a bundle once with its largest batch."""
    bundle = open_bundle(folder / "bundle")
    height, width = bundle.manifest.input.tile_px
    tiles = noise(bundle.manifest.input.max_batch, (height, width))
    for precision in PRECISIONS:
        with open_engine(bundle, precision=precision, threads=1) as engine:
            candidates = engine.infer(tiles)
        assert np.isfinite(candidates.boxes).all(), f"{folder.name} {precision}"
        assert np.isfinite(candidates.scores).all(), f"{folder.name} {precision}"


def noise(count: int, size: tuple[int, int]) -> Array:
    """Return noise, uint8 [count, 3, height, width]."""
    tiles = [structured_noise(size, seed=seed).transpose(2, 0, 1) for seed in range(count)]
    return np.ascontiguousarray(np.stack(tiles))


class CompiledTorch(TorchEngine):
    """The torch reference, compiled for one input shape."""

    def __init__(self, bundle: Any, *, threads: int) -> None:
        super().__init__(bundle, threads=threads)
        self._model = torch.compile(self._model, dynamic=False)  # type: ignore[assignment]


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """Return the latency of one tile by every runtime, measured in turns, and the speedups."""
    bundle = open_bundle(folder / "bundle")
    height, width = bundle.manifest.input.tile_px
    tiles = noise(8, (height, width))
    engines: dict[str, Engine] = {EAGER: open_engine(bundle, backend="torch", threads=threads)}
    engines[COMPILED] = CompiledTorch(bundle, threads=threads)
    for precision in ("fp32", "fp16", "int8-cpu"):
        engines[f"onnxruntime {precision}"] = open_engine(bundle, precision=precision, threads=threads)  # type: ignore[arg-type]
    started = time.perf_counter()
    engines[COMPILED].infer(tiles[:1])
    compile_seconds = time.perf_counter() - started
    calls = {name: timed_engine(name, engine, tiles, batch=1) for name, engine in engines.items()}
    for _ in time_in_turns(list(calls.values()), TIMING.turns, raise_errors=True):
        pass
    speedups = [speedup(calls, *pair) for pair in [*GOALS, (COMPILED, EAGER)]]
    results = {
        "threads": threads,
        "compile_seconds": compile_seconds,
        "latency": {
            name: {
                **sample_spread(np.array(call.samples.all_ns) / 1e6).model_dump(),
                "windows_ns": call.samples.windows_ns,
            }
            for name, call in calls.items()
        },
        "speedups": [one for one in speedups if one is not None],
    }
    for engine in engines.values():
        engine.close()
    write_json(folder / LATENCY_RESULTS, results)
    return results


def speedup(calls: dict[str, TimedCall], name: str, baseline: str) -> dict[str, Any] | None:
    """Return the speedup of a runtime over another one."""
    windows = {one: calls[one].samples.windows_ns for one in (name, baseline)}
    found = engine_speedup(name, windows[name], baseline=baseline, baseline_windows=windows[baseline], batch=1)
    return None if found is None else found.model_dump()


def table(out: Path) -> bool:
    """Print all results of a folder with their goals, and return whether all goals are met."""
    met = True
    for folder in sorted(path.parent for path in out.glob(f"*/{BUILD_RESULTS}")):
        built = json.loads((folder / BUILD_RESULTS).read_text(encoding="utf-8"))
        print(f"\n{folder.name}, tiles of {built['tile_px'][1]} px: exported in {built['export_seconds']:.0f} s")
        for precision in PRECISIONS:
            line = f"  {precision:9} {built['onnx_bytes'][precision] / 1e6:7.2f} MB"
            if precision in built["engines"]:
                engine = built["engines"][precision]
                line += f"   engine {engine['bytes'] / 1e6:7.2f} MB in {engine['seconds']:.1f} s"
            print(line)
        for name, one in built["quantization"].items():
            passed = one["map_loss"] <= MAX_MAP_LOSS
            met &= passed
            print(
                f"  {name}: mAP {one['mean_ap']:.4f}, {100 * one['map_loss']:+.2f} points lost "
                f"({one['float_layers']} of {one['layers']} layers kept in float): {'met' if passed else 'MISSED'}"
            )
            decision = one["decision"]
            if decision is not None:
                words = {True: "recommended", False: "not recommended", None: "undecided"}[decision["recommended"]]
                print(f"    {words} over {decision['baseline']}: {decision['reason']}")
        if (folder / LATENCY_RESULTS).is_file():
            met &= print_latency(built, json.loads((folder / LATENCY_RESULTS).read_text(encoding="utf-8")))
    return met


def print_latency(built: dict[str, Any], measured: dict[str, Any]) -> bool:
    """Print latencies and speedups of a detector, and return whether its goals are met."""
    for name, one in measured["latency"].items():
        print(f"  {name:22} p50 {one['p50_ms']:8.2f} ms   p95 {one['p95_ms']:8.2f} ms")
    met = True
    for one in measured["speedups"]:
        goal = GOALS.get((one["name"], one["baseline"]), {}).get(built["student"])
        if one["name"] == "onnxruntime int8-cpu" and built["detector"] != "retinanet":
            goal = None
        line = f"  {one['name']} is {one['speedup']:.2f} times as fast as {one['baseline']}"
        line += f" (rounds {1 / one['latency_ratio_max']:.2f} to {1 / one['latency_ratio_min']:.2f})"
        if goal is not None:
            met &= one["speedup"] >= goal
            line += f", goal {goal}: {'met' if one['speedup'] >= goal else 'MISSED'}"
        print(line)
    return met


def nano_jobs(out: Path) -> list[Job]:
    """Write a tiny data set of noise and an untrained checkpoint of each family and backbone."""
    data = write_noise(out / "data")
    jobs = []
    for family in get_args(Family):
        for backbone in (*STUDENTS, "resnet50"):
            folder = out / f"{family}_{backbone}"
            settings = {"family": family, "backbone": backbone, "channels": 16, "box_head_width": 32, "proposals": 60}
            training = {"epochs": 1, "batch_size": 2}
            values = {
                "name": "nano",
                "data": {**data, "tile_px": NANO_PX},
                "teacher": {"detector": settings, "training": training},
                "student": {"detector": settings, "training": training},
                "distillation": {"training": training, "method": {"name": "none"}},
                "export": {"candidates_per_level": 50, "max_batch": 4, "overlap_px": 16, "calibration": {"tiles": 4}},
            }
            recipe = parse(values, Recipe, source="the nano recipe")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = untrained_detector(recipe.student.detector)
            meta = CheckpointMeta(
                detector=recipe.student.detector,
                classes=("thing",),
                category_ids=(1,),
                recipe=recipe,
                provenance={"role": "student", "notes": ["untrained"]},
            )
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(folder / "nano.safetensors", network, meta)
            # The mAP is about 0 and cannot decrease; the files are only built and run.
            jobs.append(Job(folder / "nano.safetensors", folder, (), accept_drift=True))
    return jobs


def untrained_detector(settings: DetectorOptions) -> nn.Module:
    """Return an untrained detector with varied scores.

    The weights of the backbone's residual branches are small, because the output of a deep backbone with random weights
    depends on the last bits of its input.
    """
    network = build_detector(settings, 1)
    for name, weight in network.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(weight, 0.1)
        elif weight.ndim > 1 and not name.startswith("backbone"):
            nn.init.kaiming_normal_(weight)
    return network


def write_noise(folder: Path) -> dict[str, str]:
    """Write images of noise with one labeled square each, and return the data options of a recipe."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(NANO_IMAGES):
        name = f"{index}.png"
        Image.fromarray(structured_noise((NANO_PX, NANO_PX), seed=index)).save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "height": NANO_PX, "width": NANO_PX})
        box = {"bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
        annotations.append({"id": index + 1, "image_id": index + 1, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    write_json(folder / "all.json", content)
    return {"root": str(folder), "train": "all.json", "validation": "all.json", "test": "all.json"}


def build_and_run(job: Job) -> str:
    """Build and run a bundle with one thread; return a line with the result."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        results = build(job)
    except IfkdError as error:
        return f"{job.folder.name}: FAILED: {error}"
    run_all(job.folder)
    parity = ", ".join(f"{name} {fraction:.1%}" for name, fraction in results["matched"].items())
    return f"{job.folder.name}: built and run in {time.perf_counter() - started:.0f} s; parity: {parity}"


def build_nano(out: Path) -> bool:
    """Build all bundles of the nano recipe in parallel; return whether all succeeded in time."""
    started = time.perf_counter()
    jobs = nano_jobs(out)
    failed = 0
    # The largest first, so that all processes end at about the same time.
    jobs.sort(key=lambda job: job.checkpoint.stat().st_size, reverse=True)
    with multiprocessing.get_context("spawn").Pool(min(usable_cores(), len(jobs))) as pool:
        for line in pool.imap_unordered(build_and_run, jobs):
            print(line, flush=True)
            failed += "FAILED" in line
    seconds = time.perf_counter() - started
    files = len(jobs) * (len(PRECISIONS) + len(ENGINES))
    in_time = seconds <= MAX_NANO_SECONDS
    goal = f"goal {MAX_NANO_SECONDS:.0f}: {'met' if in_time else 'MISSED'}"
    print(f"{len(jobs)} bundles with {files} ONNX files and engines in {seconds:.0f} s, {goal}")
    return not failed and in_time


def job_of(checkpoint: Path, out: Path, overrides: Sequence[str], *, accept_drift: bool) -> Job:
    """Return the job of a checkpoint; its folder is named after family and backbone."""
    detector = load_checkpoint(checkpoint).meta.detector
    folder = out / f"{detector.family}_{detector.backbone}"
    folder.mkdir(parents=True, exist_ok=True)
    return Job(checkpoint, folder, tuple(overrides), accept_drift)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], metavar="PATH")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the recipes' export section"
    )
    parser.add_argument("--accept-drift", action="store_true", help="build even if parity with torch fails")
    parser.add_argument(
        "--latency", nargs="*", metavar="NAME", help="detectors to measure, such as retinanet_resnet18 (default: all)"
    )
    parser.add_argument("--nano", action="store_true")
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    if options.nano:
        return int(not build_nano(options.out))
    for checkpoint in options.checkpoint:
        build(job_of(checkpoint, options.out, options.set, accept_drift=options.accept_drift))
    if options.latency is not None:
        for name in options.latency or sorted(path.parent.name for path in options.out.glob(f"*/{BUILD_RESULTS}")):
            measure(options.out / name, options.threads)
    return int(not table(options.out))


if __name__ == "__main__":
    sys.exit(main())

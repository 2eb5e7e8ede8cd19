"""Every (detector, student, precision): seconds to export and to build, sizes, loss of mAP, latency beside torch.

    python benchmarks/engines.py --out DIR --checkpoint A/best.safetensors B/best.safetensors …
    python benchmarks/engines.py --out DIR --race            # latency of what lies in DIR; wants the machine alone
    python benchmarks/engines.py --out DIR --nano            # untrained and tiny, with all cells; what CI builds

The first exports each checkpoint in all four precisions (INT8 is fitted to and judged on its recipe's own images) and
builds the engines that need no GPU. The second measures ONNX Runtime in each precision beside torch, eager and
compiled, in turns within one process. Each keeps its figures in DIR and prints the table of all that lies there;
exit code 1 when a goal is missed. With --nano the networks answer noise: files are built, opened and run, and nothing
is timed but the whole.
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

from deploy.bench.latency import BenchmarkCase, TimingConfig, benchmark_case, measure_interleaved, sample_spread
from deploy.bench.speedup import speedup_of
from deploy.engines import open_engine
from deploy.engines.engine import Engine
from deploy.engines.torch_engine import TorchEngine
from export.bundle.bundle import open_bundle
from export.bundle.manifest import Precision
from export.export_bundle import export_checkpoint
from export.sample_tiles import structured_noise
from export.tensorrt.build import add_engine
from ifkd.core.config import parse
from ifkd.core.detections import Array
from ifkd.core.environment import usable_cores
from ifkd.core.errors import IfkdError
from ifkd.core.files import write_json
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from ifkd.recipe import DetectorOptions, Family, Recipe

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-cpu")
ENGINES: tuple[Precision, ...] = ("fp32", "fp16", "int8")
STUDENTS = ("resnet18", "mobilenet_v2")
EAGER, COMPILED = "torch eager", "torch.compile"
GOALS = {
    ("onnxruntime fp32", EAGER): {"resnet18": 1.2, "mobilenet_v2": 1.2},
    ("onnxruntime int8-cpu", "onnxruntime fp32"): {"resnet18": 2.5, "mobilenet_v2": 1.8},
}
"""(contestant, whom it is compared with) -> least speed-up by student; the second is for RetinaNet."""
MAP_LOSS_GOAL = 0.005
NANO_SECONDS = 360.0
PROCEDURE = TimingConfig(warmup_s=1.0, min_s=12.0, min_samples=30, rounds=6)
NANO_IMAGES, NANO_PX = 6, 64


@dataclass(frozen=True, slots=True)
class Work:
    """A bundle to be made."""

    checkpoint: Path
    folder: Path
    overrides: tuple[str, ...]
    accept_drift: bool = False
    """The answers of a network that learned little or nothing hang on its last bits, and FP16 has fewer."""


def build(work: Work) -> dict[str, Any]:
    """Export a checkpoint and build its engines; return seconds, sizes and what INT8 cost."""
    began = time.perf_counter()
    words = [f"precisions={list(PRECISIONS)}", *work.overrides]
    bundle = export_checkpoint(work.checkpoint, work.folder / "bundle", overrides=words, accept_drift=work.accept_drift)
    exported = time.perf_counter() - began
    engines = {}
    for precision in ENGINES:
        bundle, name, sidecar = add_engine(bundle, builder="tensorrt_rtx", precision=precision)
        engines[precision] = {
            "seconds": sidecar.build_seconds,
            "bytes": sidecar.engine_bytes,
            "file": name,
            "builder": f"{sidecar.builder} {sidecar.builder_version}",
        }
    bundle.verify()
    manifest = bundle.manifest
    onnx = {record.precision: record.bytes for record in manifest.files.values() if record.kind == "onnx"}
    figures = {
        "detector": manifest.detector["family"],
        "student": manifest.detector["backbone"],
        "detector_settings": manifest.detector,
        "tile_px": manifest.input.tile_px,
        "classes": manifest.classes,
        "export_seconds": exported,
        "matched": {name: check.matched for name, check in manifest.checks.items()},
        "onnx_bytes": onnx,
        "engines": engines,
        "quantization": {
            name: {
                "map_loss": one.map_loss,
                "mean_ap": one.curve[-1].mean_ap,
                "layers": one.layers,
                "float_layers": len(one.float_layers),
                "noise": one.noise,
                "verdict": None if one.verdict is None else one.verdict.model_dump(mode="json"),
            }
            for name, one in manifest.quantization.items()
        },
    }
    write_json(work.folder / "built.json", figures)
    return figures


def try_out(folder: Path) -> None:
    """Run every ONNX file of a bundle once on its largest batch."""
    bundle = open_bundle(folder / "bundle")
    height, width = bundle.manifest.input.tile_px
    tiles = noise(bundle.manifest.input.max_batch, (height, width))
    for precision in PRECISIONS:
        with open_engine(bundle, precision=precision, threads=1) as engine:
            found = engine.infer(tiles)
        assert np.isfinite(found.boxes).all(), f"{folder.name} {precision}"
        assert np.isfinite(found.scores).all(), f"{folder.name} {precision}"


def noise(count: int, size: tuple[int, int]) -> Array:
    """Return uint8 [count, 3, height, width] of noise with structure."""
    tiles = [structured_noise(size, seed=seed).transpose(2, 0, 1) for seed in range(count)]
    return np.ascontiguousarray(np.stack(tiles))


class CompiledTorch(TorchEngine):
    """The torch reference, compiled for one shape."""

    def __init__(self, bundle: Any, *, threads: int) -> None:
        super().__init__(bundle, threads=threads)
        self._graph = torch.compile(self._graph, dynamic=False)  # type: ignore[assignment]


def race(folder: Path, threads: int) -> dict[str, Any]:
    """Return the latency of one tile by every contestant, measured in turns, and their speed-ups."""
    bundle = open_bundle(folder / "bundle")
    height, width = bundle.manifest.input.tile_px
    tiles = noise(8, (height, width))
    engines: dict[str, Engine] = {EAGER: open_engine(bundle, backend="torch", threads=threads)}
    engines[COMPILED] = CompiledTorch(bundle, threads=threads)
    for precision in ("fp32", "fp16", "int8-cpu"):
        engines[f"onnxruntime {precision}"] = open_engine(bundle, precision=precision, threads=threads)  # type: ignore[arg-type]
    started = time.perf_counter()
    engines[COMPILED].infer(tiles[:1])
    compiling = time.perf_counter() - started
    runners = {name: benchmark_case(name, engine, tiles, batch=1) for name, engine in engines.items()}
    measure_interleaved(list(runners.values()), PROCEDURE)
    failures = {name: runner.failure for name, runner in runners.items() if runner.failure}
    assert not failures, failures
    figures = {
        "threads": threads,
        "compile_seconds": compiling,
        "latency": {
            name: {
                **sample_spread(np.array(runner.samples.all_ns) / 1e6).model_dump(),
                "windows_ns": runner.samples.windows_ns,
            }
            for name, runner in runners.items()
        },
        "speed_ups": [one for pair in [*GOALS, (COMPILED, EAGER)] if (one := speed_up(runners, *pair)) is not None],
    }
    for engine in engines.values():
        engine.close()
    write_json(folder / "raced.json", figures)
    return figures


def speed_up(runners: dict[str, BenchmarkCase], name: str, against: str) -> dict[str, Any] | None:
    """Return how much faster one contestant is than another, from the turns they took side by side."""
    windows = {one: runners[one].samples.windows_ns for one in (name, against)}
    ratio = speedup_of(name, windows[name], against=against, others=windows[against], batch=1)
    return None if ratio is None else ratio.model_dump()


def table(out: Path) -> bool:
    """Print all that lies in a folder, each figure that has a goal beside it, and return whether all goals are met."""
    met = True
    for folder in sorted(path.parent for path in out.glob("*/built.json")):
        built = json.loads((folder / "built.json").read_text(encoding="utf-8"))
        print(f"\n{folder.name}, tiles of {built['tile_px'][1]} px: exported in {built['export_seconds']:.0f} s")
        for precision in PRECISIONS:
            line = f"  {precision:9} {built['onnx_bytes'][precision] / 1e6:7.2f} MB"
            if precision in built["engines"]:
                engine = built["engines"][precision]
                line += f"   engine {engine['bytes'] / 1e6:7.2f} MB in {engine['seconds']:.1f} s"
            print(line)
        for name, one in built["quantization"].items():
            holds = one["map_loss"] <= MAP_LOSS_GOAL
            met &= holds
            print(
                f"  {name}: mAP {one['mean_ap']:.4f}, {100 * one['map_loss']:+.2f} points lost "
                f"({one['float_layers']} of {one['layers']} layers searched into float): {'met' if holds else 'MISSED'}"
            )
            if one["verdict"] is not None:
                worth = {True: "worth it", False: "not worth it", None: "undecided"}[one["verdict"]["worth_it"]]
                print(f"    {worth} against {one['verdict']['against']}: {one['verdict']['reason']}")
        if (folder / "raced.json").is_file():
            met &= print_race(built, json.loads((folder / "raced.json").read_text(encoding="utf-8")))
    return met


def print_race(built: dict[str, Any], raced: dict[str, Any]) -> bool:
    """Print the latencies and speed-ups of a cell, and return whether its goals are met."""
    for name, one in raced["latency"].items():
        print(f"  {name:22} p50 {one['p50_ms']:8.2f} ms   p95 {one['p95_ms']:8.2f} ms")
    met = True
    for one in raced["speed_ups"]:
        goal = GOALS.get((one["name"], one["against"]), {}).get(built["student"])
        if one["name"] == "onnxruntime int8-cpu" and built["detector"] != "retinanet":
            goal = None
        line = f"  {one['name']} is {one['speed_up']:.2f} times as fast as {one['against']}"
        line += f" (rounds {1 / one['high']:.2f} to {1 / one['low']:.2f})"
        if goal is not None:
            met &= one["speed_up"] >= goal
            line += f", goal {goal}: {'met' if one['speed_up'] >= goal else 'MISSED'}"
        print(line)
    return met


def nano(out: Path) -> list[Work]:
    """Write a tiny data set of noise and an untrained checkpoint of every detector with every backbone."""
    data = write_noise(out / "data")
    works = []
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
                "export": {"candidates_per_level": 50, "max_batch": 4, "calibration": {"tiles": 4}},
            }
            recipe = parse(values, Recipe, source="the nano recipe")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = outspoken(recipe.student.detector)
            meta = CheckpointMeta(
                detector=recipe.student.detector,
                classes=("thing",),
                category_ids=(1,),
                recipe=recipe,
                provenance={"role": "student", "notes": ["untrained"]},
            )
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(folder / "nano.safetensors", network, meta)
            # Without training a file loses nothing of a mAP of 0; what is proved here is that it is built and runs.
            works.append(Work(folder / "nano.safetensors", folder, (), accept_drift=True))
    return works


def outspoken(settings: DetectorOptions) -> nn.Module:
    """Return an untrained detector whose head keeps the signal, so that scores differ, and whose backbone adds little.

    A deep backbone with random weights is chaotic: the last bit of its input decides about its output.
    """
    network = build_detector(settings, 1)
    for name, weight in network.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(weight, 0.1)
        elif weight.ndim > 1 and not name.startswith("backbone"):
            nn.init.kaiming_normal_(weight)
    return network


def write_noise(folder: Path) -> dict[str, str]:
    """Write images of noise with a labeled square each, and return them as a recipe's data."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(NANO_IMAGES):
        name = f"{index}.png"
        Image.fromarray(structured_noise((NANO_PX, NANO_PX), seed=index)).save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "height": NANO_PX, "width": NANO_PX})
        place = {"bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
        annotations.append({"id": index + 1, "image_id": index + 1, "category_id": 1, **place})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    write_json(folder / "all.json", content)
    return {"root": str(folder), "train": "all.json", "validation": "all.json", "test": "all.json"}


def build_one_of_many(work: Work) -> str:
    """Build and try a bundle in a process of its own; return what happened in a line."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        figures = build(work)
    except IfkdError as error:
        return f"{work.folder.name}: FAILED: {error}"
    try_out(work.folder)
    parity = ", ".join(f"{name} {share:.1%}" for name, share in figures["matched"].items())
    return f"{work.folder.name}: built and run in {time.perf_counter() - began:.0f} s; as torch: {parity}"


def build_nano(out: Path) -> bool:
    """Build all bundles of the nano recipe, as many at a time as there are cores; return whether all went in time."""
    began = time.perf_counter()
    works = nano(out)
    bad = 0
    # Large ones first, so that the cores end together.
    works.sort(key=lambda work: work.checkpoint.stat().st_size, reverse=True)
    with multiprocessing.get_context("spawn").Pool(min(usable_cores(), len(works))) as pool:
        for line in pool.imap_unordered(build_one_of_many, works):
            print(line, flush=True)
            bad += "FAILED" in line
    seconds = time.perf_counter() - began
    files = len(works) * (len(PRECISIONS) + len(ENGINES))
    in_time = seconds <= NANO_SECONDS
    goal = f"goal {NANO_SECONDS:.0f}: {'met' if in_time else 'MISSED'}"
    print(f"{len(works)} bundles with {files} ONNX files and engines in {seconds:.0f} s, {goal}")
    return not bad and in_time


def work_of(checkpoint: Path, out: Path, overrides: Sequence[str], *, accept_drift: bool) -> Work:
    """Return where the bundle of a checkpoint goes: a folder named after detector and backbone."""
    detector = load_checkpoint(checkpoint).meta.detector
    folder = out / f"{detector.family}_{detector.backbone}"
    folder.mkdir(parents=True, exist_ok=True)
    return Work(checkpoint, folder, tuple(overrides), accept_drift)


def main() -> int:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], metavar="PATH")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipes' export section")
    parser.add_argument("--accept-drift", action="store_true", help="build although FP16 answers otherwise than torch")
    parser.add_argument("--race", nargs="*", metavar="CELL", help="cells, such as retinanet_resnet18 (all)")
    parser.add_argument("--nano", action="store_true")
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    if options.nano:
        return int(not build_nano(options.out))
    for checkpoint in options.checkpoint:
        build(work_of(checkpoint, options.out, options.set, accept_drift=options.accept_drift))
    if options.race is not None:
        cells = options.race or sorted(path.parent.name for path in options.out.glob("*/built.json"))
        for cell in cells:
            race(options.out / cell, options.threads)
    return int(not table(options.out))


if __name__ == "__main__":
    sys.exit(main())

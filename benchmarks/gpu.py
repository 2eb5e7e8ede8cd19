"""Measure what a bundle does on an NVIDIA GPU, within a number of minutes, the most important figures first.

    python benchmarks/gpu.py BUNDLE --minutes 9 --out gpu.json [--data test.json] [--scene scene.tif]
    python benchmarks/gpu.py BUNDLE --smoke --out smoke.json     # on the CPU, a few runs of each cell; for the tests

Each section has a share of the time, and what it does not need goes to the next ones. The results are written after
each cell, so that an interruption loses one cell at most; a cell that fails or has no time left states the reason.

- `stand-in`: the TensorRT engine by TensorRT's bindings, with a stand-in for its libraries where they are missing: with
  graphs and without, in turns; overlapped batches; many random shapes; every result is checked
- `latency`: ONNX Runtime's CUDA provider in FP32 and FP16, for batches of 1, 4 and 16, in turns: as the engine opens
  it, without CUDA graphs, and with the provider's default options
- `pipeline`: tiles per second of `infer_each`, which uploads a batch during the one before, and of `infer`
- `topk`: one top-k over all anchor-class pairs of P3 at 800 px, and best class first, as the detectors do it
- `parity`: the command `ifkd parity`
- `scene`: the command `ifkd detect`, and how much of its time the GPU was busy
- `tensorrt`: `ifkd engine` with `ifkd bench`, and trtexec, where they are installed
- `training`: steps of the four pairs at 800 px, plain, distilled, and with the outputs of the frozen networks cached
- `shapes`: many random batch sizes and tile sizes, and the memory in use before and after

Without --data and --scene, labeled tiles and a scene are generated there.
"""

import argparse
import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
from gpu_busy import BusyShare, memory_mb
from gpu_data import write_scene, write_tiles
from gpu_stand_in import cells as stand_in
from gpu_topk import best_class_first, one_axis, random_scores

from deploy.bench.latency import TimingConfig, sample_spread, timed_engine
from deploy.cli.main import main as main_of_ifkd
from deploy.engines import onnxruntime_engine
from deploy.engines.engine import Backend, Engine
from deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.manifest import Precision
from ifkd.core.detections import Array
from ifkd.core.environment import describe_environment
from ifkd.core.files import write_json
from ifkd.core.timing import TimedCall, time_in_turns

SHARES = {
    "stand-in": 0.1,
    "latency": 0.25,
    "pipeline": 0.05,
    "topk": 0.05,
    "parity": 0.1,
    "scene": 0.1,
    "tensorrt": 0.15,
    "training": 0.15,
    "shapes": 0.05,
}
"""Section -> its share of the time, the most important one first."""
BATCHES = (1, 4, 16)
P3_ANCHORS, K = 100 * 100 * 9, 1000
"""Anchors of P3 at 800 px, and the candidates of a level."""
CLASSES = (1, 10, 50)
PAIRS = tuple(itertools.product(("retinanet", "faster_rcnn"), ("mobilenet_v2", "resnet18")))
"""Detector and backbone of the student; the teacher has a ResNet-50."""
TRAINING_PX = 800
TUNED_OPTIONS = ("cudnn_conv_algo_search", "prefer_nhwc", onnxruntime_engine.GRAPHS_OPTION)


class Run:
    """A run: its bundle, its clock and its results, which are written after each cell."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.bundle: Bundle = open_bundle(arguments.bundle)
        self.smoke: bool = arguments.smoke
        self.backend: Backend = "onnxruntime" if self.smoke else "onnxruntime-cuda"
        self.timing = TimingConfig(warmup_s=0.5, min_s=3.0)
        if self.smoke:
            self.timing = TimingConfig(warmup_s=1e-9, warmup_runs=1, min_s=1e-9, min_samples=3, rounds=3)
        self._given: dict[str, Path | None] = {"data": arguments.data, "scene": arguments.scene}
        self._generated = tempfile.TemporaryDirectory(prefix="ifkd-gpu-")
        self.folder = Path(self._generated.name)
        self.stand_in: Path = arguments.stand_in or self.folder / "stand-in"
        self._out: Path = arguments.out
        self._end = time.monotonic() + 60 * arguments.minutes
        self._section_end = self._end
        self.results: dict[str, Any] = {"environment": describe_environment(), "smoke": self.smoke, "sections": {}}

    @property
    def precisions(self) -> list[Precision]:
        """FP32 and FP16, where the bundle has them."""
        return [one for one in ("fp32", "fp16") if self.bundle.find("onnx", one)]

    @property
    def batches(self) -> list[int]:
        """Batch sizes that the bundle accepts."""
        found = [one for one in BATCHES if one <= self.bundle.manifest.input.max_batch]
        return found[:1] if self.smoke else found

    @property
    def data(self) -> Path:
        """COCO file of labeled tiles, generated if none was given."""
        if self._given["data"] is None:
            count = {"count": 2} if self.smoke else {}
            self._given["data"] = write_tiles(self.folder, self.bundle.manifest, **count)
        return self._given["data"]

    @property
    def scene(self) -> Path:
        """Raster, generated if none was given."""
        if self._given["scene"] is None:
            tiles = {"tiles": 2} if self.smoke else {}
            path = self.folder / "scene.tif"
            self._given["scene"] = write_scene(path, self.bundle.manifest, **tiles)
        return self._given["scene"]

    def close(self) -> None:
        """Delete what was generated."""
        self._generated.cleanup()

    @property
    def seconds_left(self) -> float:
        """Seconds until the section ends."""
        return self._section_end - time.monotonic()

    def section(self, name: str, measure: Callable[["Run"], Iterator[tuple[str, Callable[[], Any]]]]) -> None:
        """Measure the cells of a section until its time is over."""
        later = itertools.dropwhile(lambda one: one != name, SHARES)
        share = SHARES[name] / sum(SHARES[one] for one in later)
        self._section_end = time.monotonic() + share * max(0.0, self._end - time.monotonic())
        cells: dict[str, Any] = self.results["sections"].setdefault(name, {})
        for cell, work in measure(self):
            started = time.monotonic()
            if self.seconds_left <= 0:
                cells[cell] = {"skipped": "no time left"}
            else:
                try:
                    cells[cell] = {"result": work(), "seconds": round(time.monotonic() - started, 3)}
                except SkipTest as error:
                    cells[cell] = {"skipped": str(error)}
                except Exception as error:  # noqa: BLE001 - the next cell may work
                    cells[cell] = {"failed": f"{type(error).__name__}: {error}"}
            outcome, what = next(iter(cells[cell].items()))
            print(f"{name}, {cell}: {outcome}" + (f" ({what})" if outcome != "result" else ""))
            write_json(self._out, self.results)
        write_json(self._out, self.results)


def open_variant(run: Run, precision: Precision, variant: str) -> Engine:
    """Return an engine: `engine` as it is opened by default, `no graphs`, or with the provider's `default options`."""
    original = onnxruntime_engine.provider_options

    def untuned(*arguments: Any, **values: Any) -> list[tuple[str, dict[str, str]]]:
        found = original(*arguments, **values)
        return [(name, {key: one for key, one in of.items() if key not in TUNED_OPTIONS}) for name, of in found]

    if variant == "default options":
        onnxruntime_engine.provider_options = untuned
    try:
        graphs = variant == "engine"
        threads = 1 if run.smoke else None
        return OnnxRuntimeEngine(run.bundle, backend=run.backend, precision=precision, threads=threads, graphs=graphs)
    finally:
        onnxruntime_engine.provider_options = original


def latency(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the latency of each precision and batch."""
    for batch, precision in itertools.product(run.batches, run.precisions):
        yield f"{precision} batch {batch}", partial(variants_in_turns, run, precision, batch)


def variants_in_turns(run: Run, precision: Precision, batch: int) -> dict[str, Any]:
    """Return the latency of a batch with each variant of the options, measured in turns."""
    with contextlib.ExitStack() as stack:
        calls = []
        for variant in ("engine", "no graphs", "default options"):
            engine = stack.enter_context(open_variant(run, precision, variant))
            calls.append(timed_engine(variant, engine, tiles_of(engine, batch), batch=batch))
        for _ in time_in_turns(calls, run.timing.turns, raise_errors=True):
            pass
    return {
        call.name: {
            "per_batch": sample_spread(np.array(call.samples.all_ns) / 1e6).model_dump(),
            "first_runs_ns": call.samples.warmup_ns[:3],
            "windows_ns": call.samples.windows_ns,
        }
        for call in calls
    }


def pipeline(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield tiles per second of each precision, one batch after the other and overlapped."""
    for precision in run.precisions:
        yield precision, partial(tiles_per_second, run, precision)


def tiles_per_second(run: Run, precision: Precision) -> dict[str, list[float]]:
    """Return tiles per second in alternating rounds of `infer` and `infer_each`."""
    batch, count = run.batches[-1], 2 if run.smoke else 50
    found: dict[str, list[float]] = {"infer": [], "infer_each": []}
    with open_variant(run, precision, "engine") as engine:
        batches = [tiles_of(engine, batch)] * count
        for _ in range(run.timing.rounds + 1):
            for name, outputs in {
                "infer": map(engine.infer, batches),
                "infer_each": engine.infer_each(batches),
            }.items():
                started = time.perf_counter()
                assert sum(len(one.scores) for one in outputs) == batch * count
                found[name].append(batch * count / (time.perf_counter() - started))
    return {name: rounds[1:] for name, rounds in found.items()}  # the first round records graphs


def shapes(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a run of random shapes."""
    yield f"{20 if run.smoke else 10_000} batches", partial(random_shapes, run)


def random_shapes(run: Run) -> dict[str, Any]:
    """Return the memory before and after batches of random shapes, until the time of the section is over."""
    random, most = np.random.default_rng(0), run.bundle.manifest.input.max_batch
    with open_variant(run, "fp32", "engine") as engine:
        sides = engine.info.sizes.side_range
        lengths = [engine.info.tile_px[0]] if sides is None else list(range(sides[0], sides[1] + 1, 32))
        memory, done = [memory_mb()], 0
        for _ in range(20 if run.smoke else 10_000):
            height, width = random.choice(lengths, 2).tolist() if sides else engine.info.tile_px
            engine.infer(np.zeros((int(random.integers(1, most + 1)), 3, height, width), np.uint8))
            done += 1
            if done % 1000 == 0:
                memory.append(memory_mb())
            if run.seconds_left <= 0:
                break
        memory.append(memory_mb())
    return {"batches": done, "memory_mb": memory}


def parity(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the command `ifkd parity`."""

    def compare() -> dict[str, Any]:
        words = ["parity", str(run.bundle.path), "--data", str(run.data), "--backend", run.backend]
        precisions = run.precisions[:1] if run.smoke else run.precisions
        return ifkd(run, [*words, "--precision", *precisions, "--out", "{out}/p.json"])

    yield "ifkd parity", compare


def scene(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the command `ifkd detect` in each precision."""

    def detect(precision: Precision) -> dict[str, Any]:
        words = ["detect", str(run.bundle.path), str(run.scene), "--backend", run.backend, "--precision", precision]
        with BusyShare() as busy:
            done = ifkd(run, [*words, "--out", "{out}/scene"])
        return {**done, "gpu_busy": busy.result()}

    for precision in run.precisions:
        yield f"ifkd detect {precision}", partial(detect, precision)


def tensorrt(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the build of TensorRT's engines and their benchmark; the engines are added to the bundle."""
    if run.smoke:
        return
    bundle = str(run.bundle.path)
    yield "ifkd engine", partial(ifkd, run, ["engine", bundle, "--builder", "tensorrt"])
    words = ["bench", bundle, "--backend", "tensorrt", "--batch", *map(str, run.batches), "--out", "{out}/b.json"]
    yield "ifkd bench", partial(ifkd, run, words)
    if (trtexec := shutil.which("trtexec")) is not None:
        for precision, batch in itertools.product(run.precisions, run.batches):
            yield f"trtexec {precision} batch {batch}", partial(run_trtexec, run, trtexec, precision, batch)


def run_trtexec(run: Run, program: str, precision: Precision, batch: int) -> dict[str, Any]:
    """Return the output of trtexec for an ONNX file, with the types of the file, a CUDA graph and no copies."""
    tensor = run.bundle.manifest.input
    shape = "x".join(map(str, (batch, 3, *tensor.tile_px)))
    model = run.bundle.file(run.bundle.onnx_name(precision))
    options = ["--stronglyTyped", "--noTF32", "--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--duration=3"]
    shapes = [f"--{kind}Shapes={tensor.name}:{shape}" for kind in ("min", "opt", "max")]
    return command(run, [program, f"--onnx={model}", *options, *shapes])


def training(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield steps of each pair of teacher and student."""
    for detector, student in PAIRS[:1] if run.smoke else PAIRS:
        yield f"{detector} {student}", partial(training_steps, run, detector, student)


def training_steps(run: Run, detector: str, student: str) -> dict[str, Any]:
    """Return the milliseconds of a step of each variant, measured in turns."""
    import training as steps  # noqa: PLC0415 - it imports torch, which the other sections do not need

    config = steps.StepConfig(detector, student, *((128, 1, 1, "cpu") if run.smoke else (TRAINING_PX, 2, 1, "cuda")))
    variants = [steps.PLAIN, *([] if run.smoke else [steps.CACHED, steps.UNCACHED])]
    with tempfile.TemporaryDirectory() as folder:
        benchmark = steps.StepBenchmark(Path(folder), config)
        functions = {name: benchmark.make_step(name) for name in variants}
        calls = [TimedCall(name, lambda run_step: run_step(), itertools.repeat(one)) for name, one in functions.items()]
        for _ in time_in_turns(calls, run.timing.turns, raise_errors=True):
            pass
    return {one.name: sample_spread(np.array(one.samples.all_ns) / 1e6).model_dump() for one in calls}


def topk(run: Run) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield both ways to choose the best pairs, for several numbers of classes."""
    for classes in CLASSES:
        yield f"{classes} classes", partial(topk_in_turns, run, classes)


def topk_in_turns(run: Run, classes: int) -> dict[str, Any]:
    """Return the milliseconds of both graphs, measured in turns on scores that stay on the device."""
    runtime = onnxruntime_engine.import_onnxruntime(need="Top-k", gpu=not run.smoke)
    anchors, device = P3_ANCHORS // (100 if run.smoke else 1), "cpu" if run.smoke else "cuda"
    k = min(K, anchors)
    scores = runtime.OrtValue.ortvalue_from_numpy(random_scores(anchors, classes), device, 0)
    calls, best = [], {}
    for name, build in {"one axis": one_axis, "best class first": best_class_first}.items():
        provider = onnxruntime_engine.PROVIDERS[run.backend]
        session = runtime.InferenceSession(build(anchors, classes, k), providers=[provider])
        binding = session.io_binding()
        binding.bind_ortvalue_input("scores", scores)
        binding.bind_output("best", device)
        session.run_with_iobinding(binding)
        best[name] = binding.copy_outputs_to_cpu()[0]
        calls.append(TimedCall(name, session.run_with_iobinding, itertools.repeat(binding)))
    assert np.array_equal(np.sort(best["one axis"]), np.sort(best["best class first"]))
    for _ in time_in_turns(calls, run.timing.turns, raise_errors=True):
        pass
    return {one.name: sample_spread(np.array(one.samples.all_ns) / 1e6).model_dump() for one in calls}


def ifkd(run: Run, words: list[str]) -> dict[str, Any]:
    """Run a command of `ifkd`; in its words, `{out}` is a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as out:
        filled = [word.format(out=out) for word in words]
        if run.smoke:  # in this process, which has imported everything
            return {"exit_code": main_of_ifkd(filled)}
        return command(run, [sys.executable, "-m", "ifkd", *filled])


def command(run: Run, line: list[str]) -> dict[str, Any]:
    """Run a command for the rest of the section, and return its exit code and the end of its output."""
    limit = max(1.0, run.seconds_left)
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=limit)
    return {"exit_code": done.returncode, "output": done.stdout[-4000:], "errors": done.stderr[-1000:]}


def tiles_of(engine: Engine, count: int) -> Array:
    """Return random tiles."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, *engine.info.tile_px), np.uint8)


def main() -> int:
    """Run all sections; the exit code is 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle with FP32 and FP16, for batches of up to 16")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all sections (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="results (default: runs/gpu.json)")
    parser.add_argument("--data", type=Path, help="COCO json for `ifkd parity`")
    parser.add_argument("--scene", type=Path, help="scene for `ifkd detect`")
    parser.add_argument("--stand-in", type=Path, help="libraries of the stand-in, built there unless the folder exists")
    parser.add_argument("--smoke", action="store_true", help="run a little of everything on the CPU")
    run = Run(parser.parse_args())
    with contextlib.closing(run):
        for name, measure in zip(
            SHARES, (stand_in, latency, pipeline, topk, parity, scene, tensorrt, training, shapes), strict=True
        ):
            run.section(name, measure)
    cells = [one for section in run.results["sections"].values() for one in section.values()]
    return int(any("failed" in one or one.get("result", {}).get("exit_code", 0) for one in cells))


if __name__ == "__main__":
    sys.exit(main())

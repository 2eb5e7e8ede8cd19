"""The TensorRT engine on a real GPU without TensorRT's libraries, for benchmarks/gpu.py.

The engine runs through the bindings of TensorRT and CUDA, and a stand-in of the tests replaces TensorRT's libraries. An
inference copies the first byte of each tile to the first byte of its scores, then overwrites the tiles, once or more
often, all by CUDA's own functions. So the engine's streams, events, graphs and memory are real; the computation is not.
Each result is compared with the tiles that went in. In the smoke mode, the GPU is the fake one of the tests.
"""

import contextlib
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

import numpy as np
from gpu_busy import memory_mb

from deploy.bench.latency import sample_spread
from deploy.engines import tensorrt_engine
from deploy.engines.tensorrt_engine import REPLAYED, TensorRTEngine
from export.bundle.bundle import Bundle, write_manifest
from export.bundle.engine_metadata import BatchProfile
from export.bundle.manifest import Manifest
from export.tensorrt import tensorrt_api
from ifkd.core.detections import Array, Candidates
from ifkd.core.timing import TimedCall, time_in_turns

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from fakes.engine_file import with_engine
from fakes.fake_cuda import FakeGpu
from fakes.tensorrt_stand_in import StandIn, build_libraries, installed_major, plan_of

SMALLEST_PX, STEP_PX = 32, 32
RANDOM_BATCHES, RANDOM_PX = 10_000, 256
"""Batches of random shapes, and the largest side of their tiles in pixels, so that they are quick."""


class DeviceStandIn(StandIn):
    """The stand-in, whose inferences are copies by CUDA."""

    def __init__(self, folder: Path, manifest: Manifest, cuda: tensorrt_api.CudaRuntime) -> None:
        self._manifest, self._cuda = manifest, cuda
        self.repeats = 1
        """How often an inference overwrites its tiles."""
        super().__init__(folder)

    def _enqueue(self, context: int, stream: int, batch: int, *_: int) -> bool:
        cuda, outputs = self._cuda, self._manifest.outputs.candidates
        tiles, scores = (self.address(context, name) for name in (self._manifest.input.name, "scores"))
        tile, row = self.tile_bytes(context), 4 * outputs
        calls: list[tuple[Any, ...]] = [
            (cuda.cudaMemsetAsync, self.address(context, "boxes"), 0, 4 * batch * row),
            (cuda.cudaMemsetAsync, self.address(context, "labels"), 0, 2 * batch * row),
            (cuda.cudaMemsetAsync, scores, 0, batch * row),
            (cuda.cudaMemcpy2DAsync, scores, row, tiles, tile, 1, batch, cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice),
            *itertools.repeat((cuda.cudaMemsetAsync, tiles, 0, batch * tile), self.repeats),
        ]
        return all(function(*values, stream)[0] == cuda.cudaError_t.cudaSuccess for function, *values in calls)


def cells(run: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each measurement."""
    yield "graphs", partial(measured, run, graphs_in_turns)
    yield "overlap", partial(measured, run, overlap)
    yield f"{20 if run.smoke else RANDOM_BATCHES} random shapes", partial(measured, run, random_shapes)


def measured(run: Any, measure: Callable[[Any, DeviceStandIn, Bundle], dict[str, Any]]) -> dict[str, Any]:
    """Return a measurement, with the versions of the bindings, and check that no object is left.

    Raises:
        SkipTest: The bindings or a compiler are missing, or TensorRT is installed.
    """
    installed = None if "tensorrt" in sys.modules else importlib.util.find_spec("tensorrt")
    if installed is not None and installed.origin is not None:  # a folder of that name has no origin
        raise SkipTest("TensorRT is installed, so the stand-in is not needed")
    with contextlib.ExitStack() as stack:
        gpu = tensorrt_api.Gpu("fake", "9.0", "13.0")
        if run.smoke:
            cuda: Any = FakeGpu()
            stack.enter_context(mock.patch.object(tensorrt_api, "load_cuda", return_value=cuda))
            stack.enter_context(mock.patch.object(tensorrt_api, "native_handle", int))
            stack.enter_context(mock.patch.object(tensorrt_engine, "gpu_of_this_machine", return_value=gpu))
        else:
            cuda, gpu = tensorrt_api.load_cuda("The stand-in"), tensorrt_api.gpu_of_this_machine()
        manifest = manifest_of(run.bundle.manifest)
        trt = loaded_stand_in(run.stand_in, manifest, cuda)
        stack.enter_context(mock.patch.dict(sys.modules, {"tensorrt": trt.module}))
        found = measure(run, trt, bundle_of(run.folder / "stand-in bundle", manifest, trt, gpu))
    assert trt.mistakes == []
    assert trt.alive == 0
    return {"bindings": trt.version, **found}


def loaded_stand_in(folder: Path, manifest: Manifest, cuda: tensorrt_api.CudaRuntime) -> DeviceStandIn:
    """Return the stand-in, whose libraries are built in a folder unless they are there."""
    if not folder.is_dir():
        build_libraries(folder, installed_major())
    return DeviceStandIn(folder, manifest, cuda)


def manifest_of(manifest: Manifest) -> Manifest:
    """Return the manifest of a detector with upright boxes for tiles of several sizes."""
    sides = manifest.input.tile_sides_px or (SMALLEST_PX, max(manifest.input.tile_px))
    taken = manifest.input.model_copy(update={"tile_sides_px": sides})
    outputs = manifest.outputs.model_copy(update={"oriented": False})
    return manifest.model_copy(update={"input": taken, "outputs": outputs})


def bundle_of(folder: Path, manifest: Manifest, trt: StandIn, gpu: tensorrt_api.Gpu) -> Bundle:
    """Write a bundle with an engine for this GPU, and without ONNX files."""
    folder.mkdir(exist_ok=True)
    write_manifest(folder, manifest)
    most = manifest.input.max_batch
    plan = plan_of(k=manifest.outputs.candidates, profiles=(most,), sides=manifest.input.tile_sides_px)
    device = {"device": gpu.name, "compute_capability": gpu.capability, "driver_cuda": gpu.driver_cuda}
    profile = BatchProfile(opt=most, max=most)
    return with_engine(Bundle(folder, manifest), plan=plan, builder_version=trt.version, batch=profile, **device)


def opened(bundle: Bundle, *, graphs: bool = True) -> TensorRTEngine:
    """Return the engine."""
    return TensorRTEngine(bundle, precision="fp16", graphs=graphs)


def marked(engine: TensorRTEngine, batch: int, number: int, size: tuple[int, int] | None = None) -> Array:
    """Return tiles whose first bytes depend on the number of the batch."""
    tiles = np.full((batch, 3, *(size or engine.info.tile_px)), 255, np.uint8)
    tiles[:, 0, 0, 0] = (np.arange(batch) + 37 * number) % 251
    return tiles


def checked(tiles: Array, found: Candidates) -> Candidates:
    """Return an output after a comparison with its tiles."""
    assert found.scores[:, 0].copy().view(np.uint32).tolist() == tiles[:, 0, 0, 0].tolist()
    return found


def graphs_in_turns(run: Any, trt: DeviceStandIn, bundle: Bundle) -> dict[str, Any]:
    """Return the milliseconds of an inference with and without graphs, measured in turns, for each batch size."""
    del trt
    found: dict[str, Any] = {}
    for batch in run.batches:
        with opened(bundle) as graphs, opened(bundle, graphs=False) as direct:
            calls = []
            for name, engine in {"graphs": graphs, "no graphs": direct}.items():
                calls.append(TimedCall(name, partial(infer_marked, engine, batch), itertools.count()))
            for _ in time_in_turns(calls, run.timing.turns, raise_errors=True):
                pass
            assert set(graphs.graphs.values()) == {REPLAYED}, graphs.graphs
            timing = graphs.last_timing
        spreads = {one.name: sample_spread(np.array(one.samples.all_ns) / 1e6).model_dump() for one in calls}
        found[f"batch {batch}"] = {**spreads, "last_timing": repr(timing)}
    return found


def infer_marked(engine: TensorRTEngine, batch: int, number: int) -> None:
    """Infer a batch and check the result."""
    tiles = marked(engine, batch, number)
    checked(tiles, engine.infer(tiles))


def overlap(run: Any, trt: DeviceStandIn, bundle: Bundle) -> dict[str, Any]:
    """Return tiles per second of `infer` and `infer_each`, in turns, where an inference takes as long as an upload."""
    batch, count = run.batches[-1], 4 if run.smoke else 200
    with opened(bundle, graphs=False) as engine:
        for number in range(3):
            infer_marked(engine, batch, number)
        once = engine.last_timing
    assert once is not None
    trt.repeats = 2 if run.smoke else max(1, round(once.upload_ms / once.compute_ms))
    rates: dict[str, list[float]] = {"infer": [], "infer_each": []}
    with opened(bundle) as engine:
        batches = [marked(engine, batch, number) for number in range(count)]
        for _ in range(run.timing.rounds + 1):
            for name, values in rates.items():
                started = time.perf_counter()
                outputs = map(engine.infer, batches) if name == "infer" else engine.infer_each(batches)
                for tiles, output in zip(batches, outputs, strict=True):
                    checked(tiles, output)
                values.append(batch * count / (time.perf_counter() - started))
        timing = engine.last_timing
    tiles_per_s = {name: values[1:] for name, values in rates.items()}  # the first round records the graph
    return {"batch": batch, "repeats": trt.repeats, "last_timing": repr(timing), "tiles_per_s": tiles_per_s}


def random_shapes(run: Any, trt: DeviceStandIn, bundle: Bundle) -> dict[str, Any]:
    """Return the memory in use during batches of random shapes, which end with the time of the section."""
    random, memory, done = np.random.default_rng(0), [memory_mb()], 0
    with opened(bundle) as engine:
        sides = engine.info.sizes.side_range
        assert sides is not None
        lengths = np.arange(sides[0], min(sides[1], max(sides[0], RANDOM_PX)) + 1, STEP_PX)
        count = 20 if run.smoke else RANDOM_BATCHES
        while done < count and run.seconds_left > 0:
            batch, size = int(random.integers(1, engine.info.max_batch + 1)), tuple(random.choice(lengths, 2).tolist())
            tiles = marked(engine, batch, done, size)
            checked(tiles, engine.infer(tiles))
            done += 1
            if done % 1000 == 0:
                memory.append(memory_mb())
        kept, alive = len(engine.graphs), trt.alive
    return {"batches": done, "kept_shapes": kept, "objects": alive, "memory_mb": [*memory, memory_mb()]}

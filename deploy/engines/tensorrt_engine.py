"""A bundle's TensorRT engine on an NVIDIA GPU.

Two streams: one uploads tiles, the other computes and downloads. Two slots of pinned memory take turns, so that a
batch is copied and uploaded while the one before it is computed. The engine itself has one set of tensors on the GPU,
at fixed addresses; a batch is moved there from its slot, which takes next to no time on the GPU. For each shape of
tiles there is one execution context, which runs once and is then recorded as a CUDA graph and replayed; all contexts
share one block of memory, as they never run at the same time.

Whether an engine fits this machine is read from its sidecar before the engine itself is opened
(`engine_choice.py`). TensorRT-RTX engines are opened by the same code: the two modules share their interface.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.cuda_stream import Buffer, Cuda
from deploy.engines.engine import Engine, EngineInfo, InferenceParts
from deploy.engines.engine_choice import Fit, find_engine
from export.bundle.bundle import Bundle
from export.bundle.engine_metadata import BatchProfile
from export.bundle.manifest import Precision
from export.tensorrt import tensorrt_api
from export.tensorrt.tensorrt_api import MessageLog, gpu_of_this_machine
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import BundleError, EngineError

logger = logging.getLogger(__name__)

OUTPUTS: dict[str, np.dtype[Any]] = {
    "boxes": np.dtype(np.float32),
    "scores": np.dtype(np.float32),
    "labels": np.dtype(np.int64),
}
SLOTS = 2
REPLAYED = "replayed"


@dataclass(slots=True, eq=False)
class _Slot:
    """Memory of one batch on its way through, and the events on that way."""

    tiles: Buffer
    answers: dict[str, Array]
    """Pinned."""
    begun: tensorrt_api.CudaEvent
    uploaded: tensorrt_api.CudaEvent
    started: tensorrt_api.CudaEvent
    """The batch before it is done."""
    computed: tensorrt_api.CudaEvent
    downloaded: tensorrt_api.CudaEvent
    batch: int = 0
    """Tiles it holds; 0 when it is free."""


@dataclass(slots=True, eq=False)
class _Shape:
    """How batches of one shape are run."""

    context: tensorrt_api.IExecutionContext
    graph: tensorrt_api.CudaGraph | None = None
    why: str = ""
    """`replayed`, or why there is no graph; empty before the first run."""


class TensorRTEngine(Engine):
    """TensorRT 10 or 11, or TensorRT-RTX, on the first GPU."""

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", graphs: bool = True) -> None:
        """Load the bundle's engine of a precision that was built for this machine.

        Args:
            bundle: Where the engine is.
            precision: Which engine.
            graphs: Replay CUDA graphs where the engine can be recorded.

        Raises:
            BundleError: An engine's file or sidecar does not hold.
            EngineError: There is no GPU, or no engine of the bundle fits it; the message goes through them all.
            MissingExtraError: cuda-python is not installed.
        """
        self._open = contextlib.ExitStack()
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._slots: list[_Slot] = []
        self._engine: tensorrt_api.ICudaEngine = None
        self._with_graphs = graphs
        self._parts: InferenceParts | None = None
        gpu = gpu_of_this_machine()
        fit = find_engine(bundle, precision=precision, gpu=gpu)
        manifest = bundle.manifest
        self.info = EngineInfo(
            backend="tensorrt",
            backend_version=f"{fit.sidecar.builder} {fit.sidecar.builder_version}",
            device=gpu.name,
            precision=precision,
            file=fit.name,
            sha256=manifest.files[fit.name].sha256,
            tile_px=manifest.input.tile_px,
            max_batch=fit.sidecar.batch.max,
            candidates=manifest.outputs.candidates,
            classes=manifest.classes,
            tile_sides_px=manifest.input.tile_sides_px,
        )
        self._input = manifest.input.name
        self._profiles = fit.sidecar.profiles or (fit.sidecar.batch,)
        try:
            self._start(fit, bundle.file(fit.name))
        except BaseException:
            self.close()
            raise

    @property
    def parts(self) -> InferenceParts | None:
        """The parts of the last inference that was answered, by the GPU's own clock; None before the first."""
        return self._parts

    @property
    def graphs(self) -> dict[tuple[int, ...], str]:
        """Shape of tiles that was run -> `replayed`, or why its work is given to the GPU step by step."""
        return {tiles: shape.why for tiles, shape in self._shapes.items()}

    def infer_each(self, batches: Iterable[Array]) -> Iterator[Candidates]:
        """Yield the candidates of each batch; the next one is taken and uploaded while the GPU computes the last."""
        waiting: list[_Slot] = []
        try:
            for tiles in batches:
                self._check(tiles)
                waiting.append(self._begin(tiles))
                if len(waiting) == SLOTS:
                    yield self._answer(waiting.pop(0))
            while waiting:
                yield self._answer(waiting.pop(0))
        finally:
            if waiting and self._slots:
                self._abandon()

    def close(self) -> None:
        """Free graphs, contexts, memory and streams, then engine and runtime; a second call does nothing."""
        if self._slots:
            self._abandon()
        self._shapes, self._slots, self._engine = {}, [], None
        self._open.close()

    def _run(self, tiles: Array) -> Candidates:
        return self._answer(self._begin(tiles))

    def _start(self, fit: Fit, path: Path) -> None:
        """Open the plan, check its tensors and reserve memory for the largest batch."""
        self._trt: tensorrt_api.Module = fit.trt
        log = MessageLog()
        trt_log = log.of(self._trt)
        runtime = self._trt.Runtime(trt_log)
        engine: tensorrt_api.ICudaEngine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(
                f"The runtime refuses {path} ({log.first_error()})",
                hint=f"Build it again here: ifkd engine {path.parents[1]}",
            )
        # Released in reverse: contexts must go before their engine, and the engine before its runtime.
        self._open.callback(_forget, [trt_log, runtime, engine])
        self._check_tensors(engine)
        self._engine = engine
        cuda = self._cuda = Cuda()
        self._uploads, self._stream = cuda.stream(self._open), cuda.stream(self._open)
        k, batch = self.info.candidates, self.info.max_batch
        shapes = {"boxes": (batch, k, 4), "scores": (batch, k), "labels": (batch, k)}
        tiles = (batch, 3, *self.info.sizes.largest)
        for _ in range(SLOTS):
            answers = {name: cuda.pinned(self._open, shapes[name], OUTPUTS[name]) for name in OUTPUTS}
            events = [cuda.event(self._open) for _ in range(5)]
            self._slots.append(_Slot(cuda.buffer(self._open, tiles, np.dtype(np.uint8)), answers, *events))
        sizes = {self._input: self._slots[0].tiles.host.nbytes}
        sizes |= {name: array.nbytes for name, array in self._slots[0].answers.items()}
        self._tensors = {name: cuda.memory(self._open, size) for name, size in sizes.items()}
        self._scratch_bytes = max(256, int(engine.device_memory_size_v2))
        self._scratch = cuda.memory(self._open, self._scratch_bytes)

    def _begin(self, tiles: Array) -> _Slot:
        """Hand a batch to the GPU, and return the slot whose answer is to be waited for."""
        if not self._slots:
            raise EngineError("This engine is closed", hint="Open it again.")
        free = [slot for slot in self._slots if not slot.batch]
        if not free:
            raise EngineError("This engine is busy with batches that nobody has fetched", hint="Fetch their answers.")
        try:
            self._hand_over(free[0], tiles)
        except BaseException:
            self._abandon()
            raise
        return free[0]

    def _hand_over(self, slot: _Slot, tiles: Array) -> None:
        """Give a batch's way through the GPU to the streams."""
        batch, cuda = len(tiles), self._cuda
        shape = self._shape_of(tiles.shape)
        slot.batch = batch
        slot.tiles.first(tiles.shape)[:] = tiles
        cuda.record(slot.begun, self._uploads)
        cuda.upload(slot.tiles, tiles.nbytes, self._uploads)
        cuda.record(slot.uploaded, self._uploads)
        cuda.follow(self._stream, slot.uploaded)
        cuda.record(slot.started, self._stream)
        cuda.move(slot.tiles.device, self._tensors[self._input], tiles.nbytes, self._stream)
        self._execute(shape, tiles.shape)
        cuda.record(slot.computed, self._stream)
        for name, array in slot.answers.items():
            cuda.download(self._tensors[name], array[:batch], self._stream)
        cuda.record(slot.downloaded, self._stream)

    def _abandon(self) -> None:
        """Wait until the GPU uses no slot, and free them all."""
        self._cuda.settle([self._uploads, self._stream])
        for slot in self._slots:
            slot.batch = 0

    def _answer(self, slot: _Slot) -> Candidates:
        """Wait for a slot and free it."""
        batch, slot.batch = slot.batch, 0
        if not batch:
            raise EngineError("This batch was given up when another one failed or the engine was closed")
        self._cuda.wait_for(slot.downloaded)
        time_between = self._cuda.milliseconds
        self._parts = InferenceParts(
            upload_ms=time_between(slot.begun, slot.uploaded),
            compute_ms=time_between(slot.started, slot.computed),
            download_ms=time_between(slot.computed, slot.downloaded),
        )
        # The pinned memory is overwritten by a later batch, so the caller gets copies.
        return Candidates(*(slot.answers[name][:batch].copy() for name in OUTPUTS))

    def _execute(self, shape: _Shape, tiles: tuple[int, ...]) -> None:
        """Run a context once step by step, then as the graph that was recorded of it."""
        if shape.graph is not None:
            self._cuda.launch(shape.graph, self._stream)
            return
        if not shape.context.execute_async_v3(self._stream):
            raise EngineError(f"{self.info.file} could not be run on {self.info.device}")
        if not shape.why:
            shape.graph, shape.why = self._record(shape.context)
            if shape.graph is None and self._with_graphs:
                logger.warning("%s: no CUDA graph for tiles of %s: %s", self.info.file, list(tiles), shape.why)

    def _record(self, context: tensorrt_api.IExecutionContext) -> tuple[tensorrt_api.CudaGraph | None, str]:
        """Return the graph of a context that was run, or None and why there is none."""
        if not self._with_graphs:
            return None, "graphs are switched off"
        # TensorRT-RTX alone says beforehand whether it can be recorded.
        capturable = getattr(context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream):
            return None, "the runtime says that it cannot be recorded"
        graph, why = self._cuda.recorded(self._open, lambda: context.execute_async_v3(self._stream), self._stream)
        return graph, why if graph is None else REPLAYED

    def _shape_of(self, tiles: tuple[int, ...]) -> _Shape:
        """Return how tiles of a shape are run; its context is made when the shape comes first."""
        if tiles in self._shapes:
            return self._shapes[tiles]
        engine = self._engine
        context = engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(
                f"The GPU has no memory left for {self.info.file}", hint="Free memory, or build with less workspace."
            )
        self._open.callback(_forget, [engine, context])
        context.set_device_memory(self._scratch, self._scratch_bytes)
        number = profile_for(tiles[0], self._profiles)
        taken = context.set_optimization_profile_async(number, self._stream)
        if not taken or not context.set_input_shape(self._input, tiles):
            raise EngineError(f"{self.info.file} refuses tiles of {list(tiles)}", hint="Build the engine again.")
        for name, address in self._tensors.items():
            context.set_tensor_address(name, address)
        self._shapes[tiles] = _Shape(context)
        return self._shapes[tiles]

    def _check_tensors(self, engine: tensorrt_api.ICudaEngine) -> None:
        """Refuse a plan whose tensors are not what the manifest promises; memory is reserved by these shapes."""
        k, sizes = self.info.candidates, self.info.sizes
        expected = {
            self._input: (np.dtype(np.uint8), (3, *sizes.axes)),
            "boxes": (OUTPUTS["boxes"], (k, 4)),
            "scores": (OUTPUTS["scores"], (k,)),
            "labels": (OUTPUTS["labels"], (k,)),
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        got = {
            name: (np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))), tuple(engine.get_tensor_shape(name))[1:])
            for name in names
        }
        if got != expected:
            raise BundleError(
                f"{self.info.file} is not what the manifest says",
                got=got,
                expected=expected,
                hint="Build the engine again.",
            )
        reaches = [
            [tuple(shape) for shape in engine.get_tensor_profile_shape(self._input, number)[::2]]
            for number in range(engine.num_optimization_profiles)
        ]
        promised = [[(profile.min, 3, *sizes.smallest), (profile.max, 3, *sizes.largest)] for profile in self._profiles]
        if reaches != promised:
            raise BundleError(
                f"{self.info.file} takes other batches or tiles than its sidecar says",
                got=reaches,
                expected=promised,
                hint="Build the engine again.",
            )


def profile_for(batch: int, profiles: tuple[BatchProfile, ...]) -> int:
    """Return the number of the profile with the smallest largest batch that takes `batch`."""
    fitting = [number for number, profile in enumerate(profiles) if profile.min <= batch <= profile.max]
    assert fitting, "the last profile takes every batch up to the engine's largest"
    return min(fitting, key=lambda number: profiles[number].max)


def _forget(objects: list[Any]) -> None:
    """Drop references, the last one first."""
    while objects:
        objects.pop()

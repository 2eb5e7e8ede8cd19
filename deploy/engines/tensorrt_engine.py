"""TensorRT engine: a bundle's engine file on an NVIDIA GPU.

There are two streams: one uploads tiles, the other computes and downloads. Two slots of pinned memory alternate, so a
batch is uploaded while the batch before it is computed. The network has one set of tensors at fixed addresses on the
GPU; a batch is copied there from its slot. Each tile shape has one execution context, which runs once and is then
captured as a CUDA graph. All contexts use one block of scratch memory, as they never run at the same time. Those of the
tile shapes that were used last are kept.

`engine_choice.py` selects a compatible engine file before anything is opened. TensorRT-RTX engines use the same code,
as both modules have the same interface.
"""

import contextlib
import logging
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.cuda_stream import Cuda
from deploy.engines.engine import OUTPUT_DTYPES, Engine, EngineInfo, InferenceTiming
from deploy.engines.engine_choice import CompatibleEngine, find_engine
from deploy.engines.rtx_settings import RtxSettings, kernel_file
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from export.tensorrt import tensorrt_api
from export.tensorrt.tensorrt_api import MessageLog, binding_errors, gpu_of_this_machine
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import BundleError, EngineError

logger = logging.getLogger(__name__)

SLOTS = 2
MAX_SHAPES = 16
"""Tile shapes whose contexts and graphs are kept, those used last."""
REPLAYED = "replayed"


@dataclass(slots=True, eq=False)
class _Slot:
    """Buffers and events of one batch. Arrays are in pinned memory."""

    tiles: Array
    tiles_on_gpu: int
    """Address."""
    outputs: dict[str, Array]
    upload_start: tensorrt_api.CudaEvent
    upload_end: tensorrt_api.CudaEvent
    compute_start: tensorrt_api.CudaEvent
    compute_end: tensorrt_api.CudaEvent
    download_end: tensorrt_api.CudaEvent
    batch: int = 0
    """Number of tiles in the slot; 0 for a free slot."""


@dataclass(slots=True, eq=False)
class _ShapeContext:
    """Execution context of one tile shape."""

    context: tensorrt_api.IExecutionContext
    graph_owner: contextlib.ExitStack
    """Frees the graph, before the context."""
    graph: tensorrt_api.CudaGraph | None = None
    graph_state: str = ""
    """`replayed`, or the reason why there is no graph; empty before the first run."""


class TensorRTEngine(Engine):
    """TensorRT 10 or 11, or TensorRT-RTX, on the first GPU."""

    overlaps_batches = True

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", graphs: bool = True) -> None:
        """Load an engine file that fits this machine; with `graphs`, replay CUDA graphs if it can be captured.

        Raises:
            BundleError: An engine file or its metadata is invalid.
            EngineError: There is no GPU, or no engine file is compatible.
            MissingExtraError: cuda-bindings is not installed.
        """
        self._resources = contextlib.ExitStack()
        self._contexts: dict[tuple[int, ...], _ShapeContext] = {}
        self._slots: list[_Slot] = []
        self._engine: tensorrt_api.ICudaEngine = None
        self._rtx: RtxSettings | None = None
        self._use_graphs = graphs
        gpu = gpu_of_this_machine()
        choice = find_engine(bundle, precision=precision, gpu=gpu)
        metadata = choice.metadata
        self.info = EngineInfo.of_file(
            bundle.manifest,
            choice.name,
            backend="tensorrt",
            version=f"{metadata.builder} {metadata.builder_version}",
            device=gpu.name,
            max_batch=metadata.batch.max,
        )
        self._input = bundle.manifest.input.name
        self._profiles = metadata.batch_profiles or (metadata.batch,)
        try:
            self._start(choice, bundle.file(choice.name))
        except BaseException:
            self.close()
            raise

    @property
    def graphs(self) -> dict[tuple[int, ...], str]:
        """Tile shape -> `replayed`, or the reason why the shape runs without a CUDA graph."""
        return {shape: context.graph_state for shape, context in self._contexts.items()}

    def _run_each(self, batches: Iterable[Array]) -> Generator[Candidates, None, None]:
        """Yield the candidates of each batch; the next batch is uploaded while the GPU computes the current one."""
        pending: list[_Slot] = []
        try:
            for tiles in batches:
                self._check(tiles)
                pending.append(self._submit(tiles))
                if len(pending) == SLOTS:
                    yield self._fetch(pending.pop(0))
            while pending:
                yield self._fetch(pending.pop(0))
        finally:
            if pending and self._slots:
                self._cancel_all()

    def close(self) -> None:
        """Free graphs, contexts, memory and streams, then engine and runtime; a second call does nothing."""
        if self._slots:
            self._cancel_all()
        for one in self._contexts.values():
            one.graph_owner.close()
        self._contexts, self._slots, self._engine, self._rtx = {}, [], None, None
        self._resources.close()

    def _run(self, tiles: Array) -> Candidates:
        return self._fetch(self._submit(tiles))

    def _start(self, choice: CompatibleEngine, path: Path) -> None:
        """Deserialize the engine, check its tensors and allocate memory for the largest batch."""
        self._trt: tensorrt_api.Module = choice.trt
        log = self._log = MessageLog()
        trt_log = log.of(self._trt)
        problem, hint = f"TensorRT cannot load {path}", f"Build it again on this machine: ifkd engine {path.parents[1]}"
        with binding_errors(problem, log, hint=hint):
            runtime = self._trt.Runtime(trt_log)
            engine: tensorrt_api.ICudaEngine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(f"{problem} ({log.first_error()})", hint=hint)
        # Released in reverse order: contexts before their engine, and the engine before its runtime.
        self._resources.callback(_drop_references, [trt_log, runtime, engine])
        # A type that numpy lacks is refused by an exception.
        with binding_errors(f"{self.info.file} differs from the manifest", log, hint=hint):
            self._check_tensors(engine)
        self._engine = engine
        if choice.metadata.builder == "tensorrt_rtx":
            with binding_errors(problem, log, hint=hint):
                settings = RtxSettings(self._trt, engine, kernel_file(self.info.sha256, self.info.device))
            self._resources.callback(_drop_references, [settings])
            self._resources.callback(settings.store_kernels)  # after the contexts, which compile kernels, are released
            self._rtx = settings
        cuda = self._cuda = Cuda(self._resources, need="The backend tensorrt", extras=tensorrt_api.TENSORRT_EXTRAS)
        self._upload_stream, self._stream = cuda.stream(), cuda.stream()
        batch = self.info.max_batch
        shapes = self.info.output_shapes(batch)
        for _ in range(SLOTS):
            tiles = cuda.pinned((batch, 3, *self.info.sizes.largest), np.dtype(np.uint8))
            outputs = {name: cuda.pinned(shape, OUTPUT_DTYPES[name]) for name, shape in shapes.items()}
            self._slots.append(_Slot(tiles, cuda.memory(tiles.nbytes), outputs, *[cuda.event() for _ in range(5)]))
        self._tensors = {name: cuda.memory(array.nbytes) for name, array in {self._input: tiles, **outputs}.items()}
        self._scratch_bytes = max(256, int(engine.device_memory_size_v2))
        self._scratch = cuda.memory(self._scratch_bytes)

    def _submit(self, tiles: Array) -> _Slot:
        """Enqueue a batch on the GPU, and return its slot."""
        if not self._slots:
            raise self._closed_error()
        free = [slot for slot in self._slots if not slot.batch]
        if not free:
            raise EngineError("The engine is busy with batches that were not fetched", hint="Fetch their outputs.")
        try:
            self._enqueue(free[0], tiles)
        except BaseException:
            self._cancel_all()
            raise
        return free[0]

    def _enqueue(self, slot: _Slot, tiles: Array) -> None:
        """Enqueue upload, inference and download of a batch."""
        cuda, context = self._cuda, self._context_of(tiles.shape)
        slot.batch = len(tiles)
        pinned = slot.tiles.reshape(-1)[: tiles.size].reshape(tiles.shape)
        pinned[:] = tiles
        cuda.record(slot.upload_start, self._upload_stream)
        cuda.upload(pinned, slot.tiles_on_gpu, self._upload_stream)
        cuda.record(slot.upload_end, self._upload_stream)
        cuda.stream_wait(self._stream, slot.upload_end)
        cuda.record(slot.compute_start, self._stream)
        cuda.copy_on_device(slot.tiles_on_gpu, self._tensors[self._input], tiles.nbytes, self._stream)
        self._execute(context, tiles.shape)
        cuda.record(slot.compute_end, self._stream)
        for name, array in slot.outputs.items():
            cuda.download(self._tensors[name], array[: len(tiles)], self._stream)
        cuda.record(slot.download_end, self._stream)

    def _cancel_all(self) -> None:
        """Wait until the GPU is idle, and free all slots."""
        self._cuda.synchronize_streams([self._upload_stream, self._stream])
        for slot in self._slots:
            slot.batch = 0

    def _fetch(self, slot: _Slot) -> Candidates:
        """Wait for the outputs of a slot, free it, and return them."""
        batch, slot.batch = slot.batch, 0
        if not batch:
            raise EngineError("The batch was canceled: another batch failed, or the engine was closed")
        self._cuda.synchronize(slot.download_end)
        elapsed_ms = self._cuda.elapsed_ms
        self.last_timing = InferenceTiming(
            upload_ms=elapsed_ms(slot.upload_start, slot.upload_end),
            compute_ms=elapsed_ms(slot.compute_start, slot.compute_end),
            download_ms=elapsed_ms(slot.compute_end, slot.download_end),
        )
        # A later batch overwrites the pinned memory, so the caller gets copies.
        return Candidates(*(values[:batch].copy() for values in slot.outputs.values()))

    def _execute(self, shape_context: _ShapeContext, shape: tuple[int, ...]) -> None:
        """Enqueue an inference; the first run of a shape is direct, later ones replay its CUDA graph."""
        if shape_context.graph is not None:
            self._cuda.launch(shape_context.graph, self._stream)
            return
        if not shape_context.context.execute_async_v3(self._stream):
            raise EngineError(f"TensorRT failed to run {self.info.file} on {self.info.device}")
        if not shape_context.graph_state:
            graph, reason = self._capture(shape_context)
            shape_context.graph, shape_context.graph_state = graph, reason if graph is None else REPLAYED
            if graph is None and self._use_graphs:
                logger.warning("%s: no CUDA graph for tiles of %s: %s", self.info.file, list(shape), reason)

    def _capture(self, shape_context: _ShapeContext) -> tuple[tensorrt_api.CudaGraph | None, str]:
        """Return the CUDA graph of a context that ran once, or None and the reason."""
        context = shape_context.context
        if not self._use_graphs:
            return None, "graphs are disabled"
        # Only TensorRT-RTX can report in advance whether a context can be captured.
        capturable = getattr(context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream):
            return None, "TensorRT-RTX reports that it cannot be captured"
        work = partial(context.execute_async_v3, self._stream)
        return self._cuda.capture(work, self._stream, owner=shape_context.graph_owner)

    def _context_of(self, shape: tuple[int, ...]) -> _ShapeContext:
        """Return the execution context of a tile shape; the context of the shape used longest ago may be freed."""
        found = self._contexts.pop(shape, None) or self._new_context(shape)
        self._contexts[shape] = found  # the last one is the one used last
        while len(self._contexts) > MAX_SHAPES:
            # It is idle, as the batches in flight are those of the last SLOTS calls.
            self._contexts.pop(next(iter(self._contexts))).graph_owner.close()
        return found

    def _new_context(self, shape: tuple[int, ...]) -> _ShapeContext:
        engine = self._engine
        if self._rtx is None:
            context = engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = self._rtx.create_context(engine)
        if context is None:
            hint = "Free GPU memory, or build with a smaller workspace."
            raise EngineError(f"The GPU has no memory left for {self.info.file}", hint=hint)
        # The last profile accepts every batch up to the engine's maximum.
        fitting = [number for number, one in enumerate(self._profiles) if one.min <= shape[0] <= one.max]
        number = min(fitting, key=lambda number: self._profiles[number].max)
        problem, hint = f"{self.info.file} refuses tiles of {list(shape)}", "Build the engine again."
        # Some setters return False, others raise an exception.
        with binding_errors(problem, self._log, hint=hint):
            context.set_device_memory(self._scratch, self._scratch_bytes)
            accepted = context.set_optimization_profile_async(number, self._stream)
            accepted = accepted and context.set_input_shape(self._input, shape)
            for name, address in self._tensors.items():
                accepted = accepted and context.set_tensor_address(name, address)
        if not accepted:
            raise EngineError(f"{problem} ({self._log.first_error()})", hint=hint)
        return _ShapeContext(context, contextlib.ExitStack())

    def _check_tensors(self, engine: tensorrt_api.ICudaEngine) -> None:
        """Refuse an engine whose tensors differ from the manifest: memory is allocated by the manifest's shapes."""
        sizes, file, hint = self.info.sizes, self.info.file, "Build the engine again."
        expected = {
            self._input: (np.dtype(np.uint8), (3, *sizes.axes)),
            **{name: (OUTPUT_DTYPES[name], shape) for name, shape in self.info.output_shapes().items()},
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        got = {
            name: (np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))), tuple(engine.get_tensor_shape(name))[1:])
            for name in names
        }
        if got != expected:
            raise BundleError(f"{file} differs from the manifest", got=got, expected=expected, hint=hint)
        input_ranges = [
            [tuple(shape) for shape in engine.get_tensor_profile_shape(self._input, number)[::2]]
            for number in range(engine.num_optimization_profiles)
        ]
        metadata_ranges = [[(one.min, 3, *sizes.smallest), (one.max, 3, *sizes.largest)] for one in self._profiles]
        if input_ranges != metadata_ranges:
            problem = f"{file} accepts other batches or tiles than its metadata states"
            raise BundleError(problem, got=input_ranges, expected=metadata_ranges, hint=hint)


def _drop_references(objects: list[Any]) -> None:
    """Drop references, the last one first."""
    while objects:
        objects.pop()

"""ONNX Runtime engine: a bundle's ONNX file on the CPU, or on a GPU by the CUDA or TensorRT execution provider.

Inputs and outputs are bound to memory of the computing device (I/O binding), so that a call allocates nothing and every
copy is explicit. Each tile shape has a set of bound memory, and a second one for `infer_each`, which uploads a batch
while the GPU computes the batch before it. Tiles and outputs are copied from and to pinned memory of the host.

With the CUDA provider and a file for one tile size, each set is recorded as a CUDA graph in its first run. ONNX Runtime
keeps graphs per thread, so one thread runs the session. No other thread may use the GPU during a recording.
"""

import ctypes
import itertools
import logging
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.engine import OUTPUT_DTYPES, Backend, Engine, EngineInfo, InferenceTiming
from deploy.engines.pinned_copies import GPU_EXTRAS, PinnedCopies, PinnedSlot
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest, Precision
from export.precision.ort_session import CPU_PROVIDER, import_onnxruntime, open_session
from export.tensorrt.tensorrt_api import Gpu, gpu_of_this_machine, load_tensorrt
from ifkd.core.detections import Array, Candidates
from ifkd.core.environment import usable_cores
from ifkd.core.errors import BundleError, EngineError, IfkdError, OutputError
from ifkd.core.files import cache_folder, make_folder

logger = logging.getLogger(__name__)

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS: dict[Backend, str] = {
    "onnxruntime": CPU_PROVIDER,
    "onnxruntime-cuda": CUDA,
    "onnxruntime-tensorrt": TENSORRT,
}
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}
"""Type of a tensor in ONNX Runtime -> name of its dtype."""
GRAPHS_OPTION = "enable_cuda_graph"
GRAPH_ID_ENTRY = "gpu_graph_id"
SLOTS = 2
"""Batches of `infer_each` that are in flight at once."""
MAX_SHAPES = 8
"""Tile shapes whose memory and graphs are kept, those used last."""


@dataclass(slots=True, eq=False)
class _IoBinding:
    """Bound memory for tiles of one shape."""

    binding: Any
    tiles: Any
    outputs: dict[str, Any]
    graph_id: int | None = None
    """None without CUDA graphs."""
    options: Any = None
    """Options of a run, which name the graph."""
    recorded: bool = False
    in_use: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch in flight."""

    bound: _IoBinding
    size: int
    slot: PinnedSlot | None = None
    run: "Future[tuple[float, float]] | None" = None
    """Times of upload and run, milliseconds; None, as `slot`, on the CPU, where the run has ended."""


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with one of its execution providers.

    On the CPU, an FP16 file gives FP16 outputs without a speedup: the CPU provider has no FP16 convolutions and
    computes in FP32. In FP32, the TensorRT provider rounds to TF32; only the environment variable
    NVIDIA_TF32_OVERRIDE=0 prevents it. It stores the engines that it builds in the folder of `cache_folder`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: Backend = "onnxruntime",
        precision: Precision = "fp32",
        threads: int | None = None,
        graphs: bool = True,
    ) -> None:
        """Load the bundle's ONNX file of a precision; operators that a GPU provider lacks run on the CPU.

        With `graphs`, the CUDA provider replays CUDA graphs if the file has one tile size and ONNX Runtime accepts it.

        Raises:
            BundleError: The file is missing, its digest differs, or its tensors differ from the manifest.
            EngineError: ONNX Runtime cannot load the file, or has no such provider, or there is no GPU.
            MissingExtraError: ONNX Runtime is not installed, or cuda-bindings for a GPU.
        """
        self._on_gpu = backend != "onnxruntime"
        self._ort = import_onnxruntime(need=f"The backend {backend}", gpu=self._on_gpu)
        _require_provider(self._ort, PROVIDERS[backend])
        name = bundle.onnx_name(precision)
        manifest, count = bundle.manifest, threads or usable_cores()
        self._bindings: dict[tuple[int, ...], list[_IoBinding]] = {}
        self._graph_ids = itertools.count(1)
        self._runner = ThreadPoolExecutor(1, "onnxruntime") if self._on_gpu else None
        self.overlaps_batches = self._on_gpu
        gpu = gpu_of_this_machine(f"The backend {backend}", GPU_EXTRAS) if self._on_gpu else None
        device = gpu.name if gpu is not None else f"CPU, {count} thread{'s' if count > 1 else ''}"
        version = str(self._ort.__version__)
        compute_type: Any = "fp32" if precision == "fp16" and not self._on_gpu else None
        self.info = EngineInfo.of_file(
            manifest, name, backend=backend, version=version, device=device, compute_type=compute_type
        )
        self._input = manifest.input.name
        self._cache = self._engine_cache(gpu) if gpu is not None and backend == "onnxruntime-tensorrt" else None
        providers = provider_options(PROVIDERS[backend], manifest, precision=precision, cache=self._cache)
        self._uses_graphs = graphs and backend == "onnxruntime-cuda" and manifest.input.tile_sides_px is None
        self._copies = PinnedCopies(self.info) if self._on_gpu else None
        try:
            self._start(partial(open_session, bundle.file(name), threads=count, spin=True), providers)
        except BaseException:
            self.close()
            raise

    def _engine_cache(self, gpu: Gpu) -> Path | None:
        """Return the folder where the TensorRT provider stores the engines of this file; None if it is not writable.

        Each model of GPU has its own, because the provider names engines by the compute capability alone.
        """
        try:
            return make_folder(cache_folder() / "onnxruntime-tensorrt" / f"{self.info.sha256[:16]}-{gpu.slug}")
        except OutputError as error:
            logger.warning("TensorRT builds the engine of %s again in each process: %s", self.info.file, error)
            return None

    def _start(self, open_with: Callable[..., Any], providers: list[tuple[str, dict[str, str]]]) -> None:
        """Open the session and check its tensors; if CUDA graphs fail, open it again without them."""
        refused: Exception | None = None
        if self._uses_graphs:
            (first, options), *others = providers
            try:
                self._session: Any = open_with(providers=[(first, {**options, GRAPHS_OPTION: "1"}), *others])
                self._check_tensors()
                self._run(np.zeros((1, 3, *self.info.tile_px), np.uint8))
            except BundleError:
                raise
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
                refused, self._uses_graphs, self._bindings, self._session = error, False, {}, None
            else:
                return
        try:
            self._session = open_with(providers=providers)
        except EngineError as error:
            # The provider refuses an engine in its cache that a killed process has not completed, and keeps it.
            if self._cache is None or not any(self._cache.iterdir()):
                raise
            logger.warning("TensorRT's stored engines of %s are built again: %s", self.info.file, error)
            shutil.rmtree(self._cache)
            make_folder(self._cache)
            self._session = open_with(providers=providers)
        self._check_tensors()
        if refused is not None:
            logger.warning("%s runs without CUDA graphs: %s", self.info.file, refused)

    def _check_tensors(self) -> None:
        # ONNX Runtime names a dynamic axis by a string.
        signature = {
            value.name: (
                DTYPES.get(value.type, value.type),
                [-1 if isinstance(length, str) else length for length in value.shape[1:]],
            )
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        self._check_signature(self._input, signature)

    def _run(self, tiles: Array) -> Candidates:
        return self._fetch(self._submit(tiles))

    def _run_each(self, batches: Iterable[Array]) -> Generator[Candidates, None, None]:
        """Yield the candidates of each batch; the next batch is uploaded while a GPU computes the current one."""
        if self._runner is None:
            yield from super()._run_each(batches)
            return
        pending: list[_Batch] = []
        try:
            for tiles in batches:
                self._check(tiles)
                pending.append(self._submit(tiles))
                if len(pending) == SLOTS:
                    yield self._fetch(pending.pop(0))
            while pending:
                yield self._fetch(pending.pop(0))
        finally:
            for batch in pending:
                self._release(batch)

    def close(self) -> None:
        """Drop the session and its memory; a second call does nothing."""
        if self._runner is not None:
            self._runner.shutdown()
        if self._copies is not None:
            self._copies.close()
        self._bindings = {}
        self._session = None

    def _submit(self, tiles: Array) -> _Batch:
        """Start the inference of tiles; on the CPU, it has ended then."""
        if self._session is None:
            raise self._closed_error()
        with self._failures():
            bound = self._free_binding(tiles.shape)
            if self._runner is None or self._copies is None:
                bound.tiles.update_inplace(np.ascontiguousarray(tiles))
                self._session.run_with_iobinding(bound.binding, bound.options)
                return _Batch(bound, len(tiles))
        slot = self._copies.upload(tiles, bound.tiles.data_ptr())
        run = self._runner.submit(self._timed_run, bound, self._copies, slot)
        bound.in_use = True
        if bound.graph_id is not None and not bound.recorded:
            bound.recorded = run.exception() is None  # waits until the graph is recorded
        return _Batch(bound, len(tiles), slot, run)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise what ONNX Runtime raises as an EngineError; its exceptions share no base class."""
        try:
            yield
        except IfkdError:
            raise
        except Exception as error:
            problem = f"ONNX Runtime failed to run {self.info.file} on {self.info.device} ({error})"
            raise EngineError(problem, hint="If memory is short, use a smaller --batch.") from error

    def _timed_run(self, bound: _IoBinding, copies: PinnedCopies, slot: PinnedSlot) -> tuple[float, float]:
        """Run the session until the GPU is done, and return the times of upload and run in milliseconds."""
        upload_ms = copies.finish_upload(slot)
        started = time.perf_counter()
        self._session.run_with_iobinding(bound.binding, bound.options)
        return upload_ms, 1e3 * (time.perf_counter() - started)

    def _fetch(self, batch: _Batch) -> Candidates:
        """Return the output of an inference, and free its memory for another one."""
        outputs = batch.bound.outputs
        if batch.run is None or batch.slot is None or self._copies is None:
            # A later call overwrites the bound memory, so the caller gets copies.
            return Candidates(*(outputs[name].numpy().copy() for name in self.info.output_shapes()))
        try:
            with self._failures():
                upload_ms, compute_ms = batch.run.result()
            started = time.perf_counter()
            addresses = {name: value.data_ptr() for name, value in outputs.items()}
            found = self._copies.download(batch.slot, addresses, batch.size)
        finally:
            self._release(batch)
        self.last_timing = InferenceTiming(upload_ms, compute_ms, 1e3 * (time.perf_counter() - started))
        return Candidates(*found)

    def _release(self, batch: _Batch) -> None:
        """Wait until the GPU has ended a batch, and free its memory for another one."""
        if batch.run is not None and batch.slot is not None and self._copies is not None:
            batch.run.exception()
            self._copies.release(batch.slot)
        batch.bound.in_use = False

    def _free_binding(self, shape: tuple[int, ...]) -> _IoBinding:
        """Return bound memory that is not in use; that of the shape that was used longest ago is dropped."""
        bindings = self._bindings.pop(shape, [])
        self._bindings[shape] = bindings  # the last one is the one used last
        idle = [one for one, kept in self._bindings.items() if one != shape and not any(each.in_use for each in kept)]
        for rare in idle[: max(0, len(self._bindings) - MAX_SHAPES)]:
            self._drop(self._bindings.pop(rare))
        for bound in bindings:
            if not bound.in_use:
                return bound
        bindings.append(self._bind(shape))
        return bindings[-1]

    def _drop(self, bindings: list[_IoBinding]) -> None:
        """Release the graphs of bindings, where ONNX Runtime can; their memory is freed with the last reference."""
        release = getattr(self._session, "release_captured_graph", None)  # since ONNX Runtime 1.32
        for bound in bindings:
            if release is not None and self._runner is not None and bound.graph_id is not None:
                self._runner.submit(release, bound.graph_id).result()

    def _bind(self, shape: tuple[int, ...]) -> _IoBinding:
        """Return memory on the computing device for tiles of a shape."""
        device = "cuda" if self._on_gpu else "cpu"

        def allocate(shape: Sequence[int], dtype: Any) -> Any:
            return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)

        tiles = allocate(shape, np.uint8)
        outputs = {
            name: allocate(of_output, OUTPUT_DTYPES[name].type)
            for name, of_output in self.info.output_shapes(shape[0]).items()
        }
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, tiles)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        if not self._uses_graphs:
            return _IoBinding(binding, tiles, outputs)
        graph_id, options = next(self._graph_ids), self._ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID_ENTRY, str(graph_id))
        return _IoBinding(binding, tiles, outputs, graph_id, options)


def provider_options(
    provider: str, manifest: Manifest, *, precision: Precision, cache: Path | None = None
) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers in order of preference with their options; TensorRT's engines are in `cache`."""
    options: list[tuple[str, dict[str, str]]] = [(CPU_PROVIDER, {})]
    if provider == CPU_PROVIDER:
        return options
    # The CUDA provider computes FP32 in TF32 by default, and times all algorithms of each convolution in the first run
    # of a shape. Only half precision has kernels that are faster for channels that come last.
    cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": str(int(precision == "fp16"))}
    options.insert(0, (CUDA, {"device_id": "0", **cuda}))
    if provider == TENSORRT:
        sizes, largest = manifest.input.sizes, manifest.input.max_batch
        shape = f"{manifest.input.name}:{{0}}x3x{{1[0]}}x{{1[1]}}".format
        shapes = {
            "trt_profile_min_shapes": shape(1, sizes.smallest),
            "trt_profile_opt_shapes": shape(largest, sizes.opt),
            "trt_profile_max_shapes": shape(largest, sizes.largest),
        }
        # Either flag makes the network weakly typed, so that TensorRT may choose types other than the file's.
        # Without them, FP16 and INT8 are exactly where the file has them.
        types = {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
        # The names of the stored engines contain the compute capability, TensorRT's version and a hash of the network.
        stored: dict[str, str] = {}
        for kind in ("engine", "timing") if cache is not None else ():
            stored |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(cache)}
        options.insert(0, (TENSORRT, {"device_id": "0", **types, **shapes, **stored}))
    return options


def _linked_tensorrt_major(onnxruntime: Any) -> int | None:
    """Return the major version of TensorRT that ONNX Runtime's provider is linked with; None without that provider."""
    path = Path(str(onnxruntime.__file__)).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not path.is_file():
        return None
    found = re.search(rb"libnvinfer\.so\.(\d+)", path.read_bytes())
    return int(found[1]) if found else None


def _require_provider(onnxruntime: Any, provider: str) -> None:
    """Refuse a provider that ONNX Runtime lacks, or whose TensorRT library cannot be loaded."""
    available = [str(name) for name in onnxruntime.get_available_providers()]
    if provider not in available:
        hint = "Install onnxruntime-gpu in place of onnxruntime: pip install 'ifkd[gpu]'; see `ifkd doctor`."
        raise EngineError(f"The installed ONNX Runtime has no {provider}", got=", ".join(available), hint=hint)
    if provider != TENSORRT:
        return
    linked = _linked_tensorrt_major(onnxruntime)
    try:
        # The libraries of TensorRT's wheels are found after their module has loaded them.
        found = f"TensorRT {load_tensorrt('tensorrt')[1]}"
    except IfkdError as error:
        found = str(error)
    problem: Exception | None = None
    try:
        if linked is not None:
            ctypes.CDLL(f"libnvinfer.so.{linked}")
            return
    except OSError as error:
        problem = error
    raise EngineError(
        "ONNX Runtime's TensorRT provider does not fit the installed TensorRT",
        got=found,
        expected=f"TensorRT {linked}, which it is linked with" if linked else "a provider linked with TensorRT",
        hint="Use the backend tensorrt, or onnxruntime-cuda.",
    ) from problem

"""A bundle's TensorRT engine on an NVIDIA GPU: one stream, pinned memory on the host, buffers of the largest batch.

Whether an engine fits this machine is read from its sidecar before the engine itself is opened, because opening a
plan of another version or GPU fails late and says little. TensorRT-RTX engines are opened by the same code: the two
modules share their interface.
"""

import contextlib
import ctypes
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engine import Engine, EngineInfo
from export.bundle import Bundle
from export.engine_build import gpu_of_this_machine, load_builder
from export.manifest import Precision
from export.sidecar import PORTABLE, EngineSidecar, read_sidecar, sidecar_path
from ifkd.detections import Array, Candidates
from ifkd.errors import BundleError, EngineError, IfkdError, MissingExtraError

logger = logging.getLogger(__name__)

OUTPUTS: dict[str, np.dtype[Any]] = {
    "boxes": np.dtype(np.float32),
    "scores": np.dtype(np.float32),
    "labels": np.dtype(np.int64),
}
PORTABLE_CAPABILITIES = "8.0, 8.6, 8.9, 12.0 and later"
"""GPUs that TensorRT-RTX's documentation names for portable engines."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """An engine file that this machine should be able to run."""

    name: str
    sidecar: EngineSidecar
    trt: Any
    """The runtime's module."""


class TensorRTEngine(Engine):
    """TensorRT 10 or 11, or TensorRT-RTX, on the first GPU."""

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32") -> None:
        """Load the bundle's engine of a precision that was built for this machine.

        Raises:
            BundleError: An engine's file or sidecar does not hold.
            EngineError: There is no GPU, or no engine of the bundle fits it; the message goes through them all.
            MissingExtraError: cuda-python is not installed.
        """
        self._open = contextlib.ExitStack()
        self._context: Any = None
        gpu = gpu_of_this_machine()
        fit = find_engine(bundle, precision=precision, gpu=gpu)
        manifest = bundle.manifest
        self.info = EngineInfo(
            backend="tensorrt",
            backend_version=f"{fit.sidecar.builder} {fit.sidecar.builder_version}",
            device=gpu[0],
            precision=precision,
            file=fit.name,
            sha256=manifest.files[fit.name].sha256,
            tile_px=manifest.input.tile_px,
            max_batch=fit.sidecar.batch.max,
            candidates=manifest.outputs.candidates,
            classes=manifest.classes,
        )
        self._input = manifest.input.name
        try:
            self._start(fit.trt, bundle.file(fit.name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free buffers and stream, then context, engine and runtime; a second call does nothing."""
        self._context = None
        self._open.close()

    def _start(self, trt: Any, path: Path) -> None:
        """Open the plan, check its tensors and reserve memory for the largest batch."""
        log = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(f"The runtime refuses {path}", mend=f"Build it again here: ifkd engine {path.parents[1]}")
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"The GPU has no memory left for {path}", mend="Free memory, or build with less workspace."
            )
        # Released in reverse: the context must go before its engine, and the engine before its runtime.
        self._open.callback(_forget, [log, runtime, engine])
        self._check_tensors(trt, engine)
        cuda = _Cuda()
        self._stream = cuda.stream(self._open)
        k, batch = self.info.candidates, self.info.max_batch
        shapes = {self._input: (batch, 3, *self.info.tile_px), "boxes": (batch, k, 4), "scores": (batch, k)}
        shapes["labels"] = (batch, k)
        dtypes: dict[str, np.dtype[Any]] = {self._input: np.dtype(np.uint8), **OUTPUTS}
        self._buffers = {name: cuda.buffer(self._open, shapes[name], dtypes[name]) for name in shapes}
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        self._cuda, self._context = cuda, context

    def _run(self, tiles: Array) -> Candidates:
        if self._context is None:
            raise EngineError("This engine is closed", mend="Open it again.")
        batch = len(tiles)
        source = self._buffers[self._input]
        source.host[:batch] = tiles
        if not self._context.set_input_shape(self._input, tuple(tiles.shape)):
            raise EngineError(f"{self.info.file} refuses a batch of {batch}", mend="Build the engine again.")
        self._cuda.to_device(source, batch, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(f"{self.info.file} could not be run on {self.info.device}")
        for name in OUTPUTS:
            self._cuda.to_host(self._buffers[name], batch, self._stream)
        self._cuda.wait(self._stream)
        # The pinned buffers are overwritten by the next call, so the caller gets copies.
        return Candidates(*(self._buffers[name].host[:batch].copy() for name in OUTPUTS))

    def _check_tensors(self, trt: Any, engine: Any) -> None:
        """Refuse a plan whose tensors are not what the manifest promises; memory is reserved by these shapes."""
        k, (height, width) = self.info.candidates, self.info.tile_px
        expected = {
            self._input: (np.dtype(np.uint8), (3, height, width)),
            "boxes": (OUTPUTS["boxes"], (k, 4)),
            "scores": (OUTPUTS["scores"], (k,)),
            "labels": (OUTPUTS["labels"], (k,)),
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        got = {
            name: (np.dtype(trt.nptype(engine.get_tensor_dtype(name))), tuple(engine.get_tensor_shape(name))[1:])
            for name in names
        }
        if got != expected:
            raise BundleError(
                f"{self.info.file} is not what the manifest says",
                got=got,
                expected=expected,
                mend="Build the engine again.",
            )
        largest = tuple(engine.get_tensor_profile_shape(self._input, 0)[2])
        if largest[0] < self.info.max_batch:
            raise BundleError(
                f"{self.info.file} takes smaller batches than its sidecar says",
                got=largest[0],
                expected=self.info.max_batch,
            )


def find_engine(bundle: Bundle, *, precision: Precision, gpu: tuple[str, str]) -> _Fit:
    """Return the engine of a bundle that fits this machine, from sidecars alone; one built for this GPU goes first.

    Args:
        bundle: Where the engines are.
        precision: Which engines.
        gpu: Name and compute capability.

    Raises:
        BundleError: A sidecar does not hold.
        EngineError: None fits; the message says why, engine by engine.
    """
    reasons, fits = [], []
    for name in bundle.find("engine", precision):
        sidecar = read_sidecar(bundle.file(str(sidecar_path(Path(name)))))
        try:
            trt, version = load_builder(sidecar.builder)
        except IfkdError as error:
            reasons.append(f"{name}: {error}")
            continue
        reason = unfit_because(sidecar, bundle, name, version=version, gpu=gpu)
        if reason is None:
            fits.append(_Fit(name, sidecar, trt))
        else:
            reasons.append(f"{name}: {reason}")
    if not fits:
        raise EngineError(
            f"No {precision} engine of {bundle.path} fits this machine",
            got="; ".join(reasons) or "a bundle without such an engine",
            expected=f"an engine for {gpu[0]} (compute capability {gpu[1]})",
            mend=f"Build one here: ifkd engine {bundle.path} --builder tensorrt --precision {precision}",
        )
    return min(fits, key=lambda fit: fit.sidecar.device == PORTABLE)


def unfit_because(
    sidecar: EngineSidecar, bundle: Bundle, name: str, *, version: str, gpu: tuple[str, str]
) -> str | None:
    """Return why an engine cannot be opened here, or None when nothing speaks against it."""
    here, capability = gpu
    if sidecar.engine_sha256 != bundle.manifest.files[name].sha256:
        return "its sidecar describes another file"
    sources = [bundle.manifest.files[file].sha256 for file in bundle.find("onnx")]
    if sidecar.onnx_sha256 not in sources:
        return "it was built from another ONNX file than the bundle has"
    if sidecar.builder_version != version:
        return f"it was built by {sidecar.builder} {sidecar.builder_version}, here is {version}"
    if sidecar.device == PORTABLE:
        major, minor = (int(part) for part in capability.split("."))
        if (major, minor) not in {(8, 0), (8, 6), (8, 9)} and major < 12:
            return f"portable engines run on compute capability {PORTABLE_CAPABILITIES}, here is {capability}"
    elif (sidecar.device, sidecar.compute_capability) != gpu:
        return f"it was built for {sidecar.device} ({sidecar.compute_capability}), here is {here} ({capability})"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Buffer:
    """The same array on the host, in pinned memory, and on the GPU."""

    host: Array
    device: int
    """Address."""

    def bytes_of(self, batch: int) -> int:
        """Return the size of the first `batch` rows."""
        return self.host[:batch].nbytes


class _Cuda:
    """The few calls of the CUDA runtime that an engine makes; every failure is an error."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("cuda-python", extra="tensorrt", need="The backend tensorrt") from error
        self._runtime: Any = runtime

    def stream(self, owner: contextlib.ExitStack) -> int:
        """Return a stream that `owner` destroys."""
        (stream,) = self._call("cudaStreamCreate")
        owner.callback(self._give_back, "cudaStreamDestroy", stream)
        return int(stream)

    def buffer(self, owner: contextlib.ExitStack, shape: Sequence[int], dtype: np.dtype[Any]) -> _Buffer:
        """Return memory on both sides that `owner` frees."""
        size = math.prod(shape) * dtype.itemsize
        (device,) = self._call("cudaMalloc", size)
        owner.callback(self._give_back, "cudaFree", device)
        (host,) = self._call("cudaMallocHost", size)
        owner.callback(self._give_back, "cudaFreeHost", host)
        raw = (ctypes.c_ubyte * size).from_address(int(host))
        return _Buffer(np.frombuffer(memoryview(raw), dtype).reshape(shape), int(device))

    def to_device(self, buffer: _Buffer, batch: int, stream: int) -> None:
        """Start copying the first `batch` rows to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        size = buffer.bytes_of(batch)
        self._call("cudaMemcpyAsync", buffer.device, buffer.host.ctypes.data, size, kind, stream)

    def to_host(self, buffer: _Buffer, batch: int, stream: int) -> None:
        """Start copying the first `batch` rows from the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size = buffer.bytes_of(batch)
        self._call("cudaMemcpyAsync", buffer.host.ctypes.data, buffer.device, size, kind, stream)

    def wait(self, stream: int) -> None:
        """Wait until everything given to the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *values = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"The GPU refused {name} ({status.name})", mend="Free GPU memory, or look at nvidia-smi.")
        return tuple(values)

    def _give_back(self, name: str, handle: Any) -> None:
        """Free a handle; closing goes on when that fails, as nothing else can be done about it."""
        (status,) = getattr(self._runtime, name)(handle)
        if status != self._runtime.cudaError_t.cudaSuccess:
            logger.warning("%s failed (%s)", name, status.name)


def _forget(objects: list[Any]) -> None:
    """Drop references, the last one first."""
    while objects:
        objects.pop()

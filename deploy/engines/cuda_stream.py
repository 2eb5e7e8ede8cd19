"""CUDA as an engine uses it: streams, memory on both sides, events and graphs; every failed call is an error."""

import contextlib
import ctypes
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.tensorrt import tensorrt_api
from ifkd.core.detections import Array
from ifkd.core.errors import EngineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """The same array on the host, in pinned memory, and on the GPU."""

    host: Array
    device: int
    """Address."""

    def first(self, shape: tuple[int, ...]) -> Array:
        """Return the host's memory, from its start, as an array of a shape that is no larger than the whole."""
        return self.host.reshape(-1)[: math.prod(shape)].reshape(shape)


class Cuda:
    """The few calls of the CUDA runtime that an engine makes. What is made belongs to an `owner` that frees it."""

    def __init__(self) -> None:
        self._runtime: tensorrt_api.CudaRuntime = tensorrt_api.load_cuda("The backend tensorrt")

    def stream(self, owner: contextlib.ExitStack) -> int:
        """Return a stream that does not wait for the default one."""
        (stream,) = self._call(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)
        owner.callback(self._give_back, self._runtime.cudaStreamDestroy, stream)
        return int(stream)

    def event(self, owner: contextlib.ExitStack) -> tensorrt_api.CudaEvent:
        """Return an event that notes its time."""
        (event,) = self._call(self._runtime.cudaEventCreate)
        owner.callback(self._give_back, self._runtime.cudaEventDestroy, event)
        return event

    def memory(self, owner: contextlib.ExitStack, size: int) -> int:
        """Return the address of `size` bytes on the GPU, aligned to 256."""
        (device,) = self._call(self._runtime.cudaMalloc, size)
        owner.callback(self._give_back, self._runtime.cudaFree, device)
        return int(device)

    def pinned(self, owner: contextlib.ExitStack, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return an array on the host that the GPU copies to and from by itself."""
        size = math.prod(shape) * dtype.itemsize
        (host,) = self._call(self._runtime.cudaMallocHost, size)
        owner.callback(self._give_back, self._runtime.cudaFreeHost, host)
        raw = (ctypes.c_ubyte * size).from_address(int(host))
        return np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def buffer(self, owner: contextlib.ExitStack, shape: Sequence[int], dtype: np.dtype[Any]) -> Buffer:
        """Return memory on both sides."""
        device = self.memory(owner, math.prod(shape) * dtype.itemsize)
        return Buffer(self.pinned(owner, shape, dtype), device)

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """Start copying the first `size` bytes to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._runtime.cudaMemcpyAsync, buffer.device, buffer.host.ctypes.data, size, kind, stream)

    def download(self, device: int, host: Array, stream: int) -> None:
        """Start copying to a pinned array from the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._runtime.cudaMemcpyAsync, host.ctypes.data, device, host.nbytes, kind, stream)

    def move(self, source: int, target: int, size: int, stream: int) -> None:
        """Start copying `size` bytes from one address of the GPU to another."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(self._runtime.cudaMemcpyAsync, target, source, size, kind, stream)

    def record(self, event: tensorrt_api.CudaEvent, stream: int) -> None:
        """Let an event happen when everything given to the stream so far is done."""
        self._call(self._runtime.cudaEventRecord, event, stream)

    def follow(self, stream: int, event: tensorrt_api.CudaEvent) -> None:
        """Let a stream go on only when an event has happened."""
        self._call(self._runtime.cudaStreamWaitEvent, stream, event, 0)

    def wait_for(self, event: tensorrt_api.CudaEvent) -> None:
        """Wait until an event has happened."""
        self._call(self._runtime.cudaEventSynchronize, event)

    def settle(self, streams: Sequence[int]) -> None:
        """Wait for streams that are about to go; a failure is told, and going on is all that can be done about it."""
        for stream in streams:
            self._give_back(self._runtime.cudaStreamSynchronize, stream)

    def milliseconds(self, first: tensorrt_api.CudaEvent, second: tensorrt_api.CudaEvent) -> float:
        """Return the time between two events that have happened."""
        (elapsed,) = self._call(self._runtime.cudaEventElapsedTime, first, second)
        return float(elapsed)

    def recorded(
        self, owner: contextlib.ExitStack, work: Callable[[], bool], stream: int
    ) -> tuple[tensorrt_api.CudaGraph | None, str]:
        """Return what `work` gives to the stream as a graph to be launched again, or None and why there is none.

        Nothing of it runs. Work of other threads on the GPU does not disturb the recording.
        """
        runtime: tensorrt_api.CudaRuntime = self._runtime
        ok = runtime.cudaError_t.cudaSuccess
        (status,) = runtime.cudaStreamBeginCapture(
            stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        if status != ok:
            return None, f"cudaStreamBeginCapture gave {status.name}"
        done = False
        try:
            done = work()
        finally:
            # The recording must end whatever happened, as the stream takes nothing else meanwhile.
            status, graph = runtime.cudaStreamEndCapture(stream)
        if status != ok or not done:
            if status == ok:
                self._give_back(runtime.cudaGraphDestroy, graph)
            runtime.cudaGetLastError()  # else the next call would report it
            return None, f"cudaStreamEndCapture gave {status.name}" if done else "the engine cannot be recorded"
        status, executable = runtime.cudaGraphInstantiate(graph, 0)
        self._give_back(runtime.cudaGraphDestroy, graph)
        if status != ok:
            runtime.cudaGetLastError()
            return None, f"cudaGraphInstantiate gave {status.name}"
        owner.callback(self._give_back, runtime.cudaGraphExecDestroy, executable)
        return executable, "recorded"

    def launch(self, graph: tensorrt_api.CudaGraph, stream: int) -> None:
        """Start a graph's work."""
        self._call(self._runtime.cudaGraphLaunch, graph, stream)

    def _call(self, function: tensorrt_api.CudaFunction, *arguments: Any) -> tuple[Any, ...]:
        status, *values = function(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise EngineError(
                f"The GPU refused {function.__name__} ({status.name})",
                hint="Free GPU memory, or look at nvidia-smi.",
            )
        return tuple(values)

    def _give_back(self, function: tensorrt_api.CudaFunction, handle: Any) -> None:
        """Free a handle; closing goes on when that fails, as nothing else can be done about it."""
        (status,) = function(handle)
        if status != self._runtime.cudaError_t.cudaSuccess:
            logger.warning("%s failed (%s)", function.__name__, status.name)

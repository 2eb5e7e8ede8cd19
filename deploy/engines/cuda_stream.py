"""CUDA streams, events, memory and graphs, as the engines on a GPU use them; a failed call raises `EngineError`."""

import contextlib
import ctypes
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from export.tensorrt import tensorrt_api
from ifkd.core.detections import Array
from ifkd.core.errors import EngineError

logger = logging.getLogger(__name__)


class Cuda:
    """A small interface to the CUDA runtime. Each created object is freed by the exit stack `owner`.

    `need` and `extras` are for the error without cuda-bindings: what needs it, and what installs it.
    """

    def __init__(self, owner: contextlib.ExitStack, *, need: str, extras: tuple[str, ...]) -> None:
        self._owner = owner
        self._runtime: tensorrt_api.CudaRuntime = tensorrt_api.load_cuda(need, extras)

    def sleep_while_waiting(self) -> None:
        """Let all threads of this process sleep while they wait for the GPU, also inside other libraries."""
        self._call(self._runtime.cudaSetDeviceFlags, self._runtime.cudaDeviceScheduleBlockingSync)

    def stream(self) -> int:
        """Return a stream that does not wait for the default stream."""
        (stream,) = self._call(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)
        self._owner.callback(self._release, self._runtime.cudaStreamDestroy, stream)
        return tensorrt_api.native_handle(stream)

    def event(self) -> tensorrt_api.CudaEvent:
        """Return an event that records its time; a thread that waits for it sleeps, so its core is free."""
        (event,) = self._call(self._runtime.cudaEventCreateWithFlags, self._runtime.cudaEventBlockingSync)
        self._owner.callback(self._release, self._runtime.cudaEventDestroy, event)
        return event

    def memory(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU, aligned to 256 bytes."""
        (device,) = self._call(self._runtime.cudaMalloc, size)
        self._owner.callback(self._release, self._runtime.cudaFree, device)
        return int(device)

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return an array in pinned memory of the host."""
        size = math.prod(shape) * dtype.itemsize
        (host,) = self._call(self._runtime.cudaMallocHost, size)
        self._owner.callback(self._release, self._runtime.cudaFreeHost, host)
        raw = (ctypes.c_ubyte * size).from_address(int(host))
        return np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def upload(self, host: Array, device: int, stream: int) -> None:
        """Enqueue a copy of a pinned array to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._runtime.cudaMemcpyAsync, device, host.ctypes.data, host.nbytes, kind, stream)

    def download(self, device: int, host: Array, stream: int) -> None:
        """Enqueue a copy from the GPU to a pinned array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._runtime.cudaMemcpyAsync, host.ctypes.data, device, host.nbytes, kind, stream)

    def copy_on_device(self, source: int, target: int, size: int, stream: int) -> None:
        """Enqueue a copy of `size` bytes from one address of the GPU to another."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(self._runtime.cudaMemcpyAsync, target, source, size, kind, stream)

    def record(self, event: tensorrt_api.CudaEvent, stream: int) -> None:
        """Record an event after all work enqueued on the stream so far."""
        self._call(self._runtime.cudaEventRecord, event, stream)

    def stream_wait(self, stream: int, event: tensorrt_api.CudaEvent) -> None:
        """Make later work on a stream wait for an event."""
        self._call(self._runtime.cudaStreamWaitEvent, stream, event, 0)

    def synchronize(self, event: tensorrt_api.CudaEvent) -> None:
        """Block until an event has completed."""
        self._call(self._runtime.cudaEventSynchronize, event)

    def synchronize_streams(self, streams: Sequence[int]) -> None:
        """Block until streams are idle; a failure is only logged, so that closing can continue."""
        for stream in streams:
            self._release(self._runtime.cudaStreamSynchronize, stream)

    def elapsed_ms(self, first: tensorrt_api.CudaEvent, second: tensorrt_api.CudaEvent) -> float:
        """Return the time between two completed events."""
        (elapsed,) = self._call(self._runtime.cudaEventElapsedTime, first, second)
        return float(elapsed)

    def capture(
        self, work: Callable[[], bool], stream: int, *, owner: contextlib.ExitStack
    ) -> tuple[tensorrt_api.CudaGraph | None, str]:
        """Capture what `work` enqueues on a stream, without running it; other threads may use the GPU meanwhile.

        Return the executable graph, which `owner` frees, and an empty string, or None and the reason.
        """
        runtime: tensorrt_api.CudaRuntime = self._runtime
        ok, mode = runtime.cudaError_t.cudaSuccess, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        (status,) = runtime.cudaStreamBeginCapture(stream, mode)
        if status != ok:
            return None, f"cudaStreamBeginCapture returned {status.name}"
        done = False
        try:
            done = work()
        finally:
            # The stream accepts no other work until the capture has ended.
            status, graph = runtime.cudaStreamEndCapture(stream)
        if status != ok or not done:
            if status == ok:
                self._release(runtime.cudaGraphDestroy, graph)
            runtime.cudaGetLastError()  # clear it, or the next call reports it
            return None, f"cudaStreamEndCapture returned {status.name}" if done else "the engine cannot be captured"
        status, executable = runtime.cudaGraphInstantiate(graph, 0)
        self._release(runtime.cudaGraphDestroy, graph)
        if status != ok:
            runtime.cudaGetLastError()
            return None, f"cudaGraphInstantiate returned {status.name}"
        owner.callback(self._release, runtime.cudaGraphExecDestroy, executable)
        return executable, ""

    def launch(self, graph: tensorrt_api.CudaGraph, stream: int) -> None:
        """Enqueue a graph."""
        self._call(self._runtime.cudaGraphLaunch, graph, stream)

    def _call(self, function: tensorrt_api.CudaFunction, *arguments: Any) -> tuple[Any, ...]:
        status, *values = function(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            is_full = status == self._runtime.cudaError_t.cudaErrorMemoryAllocation
            hint = (
                "Free memory; nvidia-smi lists the GPU's users." if is_full else "`ifkd doctor` lists what works here."
            )
            raise EngineError(f"{function.__name__} failed ({status.name})", hint=hint)
        return tuple(values)

    def _release(self, function: tensorrt_api.CudaFunction, handle: Any) -> None:
        """Call a function that frees a handle; a failure is only logged, so that closing can continue."""
        (status,) = function(handle)
        if status != self._runtime.cudaError_t.cudaSuccess:
            logger.warning("%s failed (%s)", function.__name__, status.name)

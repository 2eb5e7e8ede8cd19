# ruff: noqa: N802, N815, ARG002 - names and arguments are CUDA's
"""Fake of the CUDA runtime, which runs the work of a stream as late as CUDA may run it.

Work runs only at a synchronization. So an engine that forgets to synchronize reads memory that is not written yet, and
an engine that lets two streams run without an order between them reads old data.
"""

import ctypes
import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest


class FakeGpu:
    """Fake of `cuda.bindings.runtime`, with its types and signatures; the GPU's memory is memory of the host."""

    def __init__(self) -> None:
        try:
            self._real: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise SkipTest("cuda-bindings is not installed") from error
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.alive: set[str] = set()
        """Streams, events and graphs that are not destroyed."""
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[str, tuple[int, int] | None] = {}
        """Event -> stream, and number of its work items before the event."""
        self.done: dict[int, int] = {}
        self.graphs: dict[str, list[Callable[[], None]]] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.failing = ""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        real = getattr(self._real, name)
        if not name[4].isupper() or not callable(real) or isinstance(real, type):
            return real
        parameters = inspect.signature(real)

        def call(*arguments: Any) -> tuple[Any, ...]:
            parameters.bind(*arguments)
            self.calls.append(name)
            if name == self.failing:
                if name == "cudaStreamEndCapture":
                    self.recording = None
                status = self._real.cudaError_t.cudaErrorUnknown
                return (status,) if name == "cudaStreamBeginCapture" else (status, None)
            return (self._real.cudaError_t.cudaSuccess, *getattr(self, f"_{name}", lambda *_: ())(*arguments))

        call.__name__ = name
        return call

    def _cudaDriverGetVersion(self) -> tuple[int]:
        return (13000,)

    def _cudaGetDeviceProperties(self, device: int) -> tuple[Any]:
        assert device == 0
        return (SimpleNamespace(name=b"NVIDIA H200\0", major=9, minor=0),)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        assert stream in self.streams
        (self.streams[stream] if self.recording is None else self.recording).append(work)

    def run(self, stream: int, count: int | None = None) -> None:
        """Run all work items of a stream, or the first `count`."""
        count = len(self.streams[stream]) if count is None else count
        while self.done[stream] < count:
            work = self.streams[stream][self.done[stream]]
            self.done[stream] += 1
            work()

    def _make(self, kind: str) -> str:
        name = f"{kind} {len(self.calls)}"
        self.alive.add(name)
        return name

    def _cudaSetDeviceFlags(self, flags: int) -> tuple[()]:
        assert flags == self._real.cudaDeviceScheduleBlockingSync
        return ()

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:
        assert flags == self._real.cudaStreamNonBlocking
        stream = 100 + len(self.streams)
        self.streams[stream], self.done[stream] = [], 0
        self.alive.add(str(stream))
        return (stream,)

    def _cudaStreamDestroy(self, stream: int) -> tuple[()]:
        self.alive.remove(str(stream))
        return ()

    def _cudaEventCreateWithFlags(self, flags: int) -> tuple[str]:
        assert flags == self._real.cudaEventBlockingSync
        event = self._make("event")
        self.events[event] = None
        return (event,)

    def _cudaEventDestroy(self, event: str) -> tuple[()]:
        self.alive.remove(event)
        return ()

    _cudaGraphExecDestroy = _cudaGraphDestroy = _cudaEventDestroy

    def _cudaMalloc(self, size: int) -> tuple[int]:
        block = ctypes.create_string_buffer(b"\xa5" * size, size)
        self.memory[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, address: int) -> tuple[()]:
        del self.memory[address]
        return ()

    _cudaFreeHost = _cudaFree

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[()]:
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size) and None)
        return ()

    def _cudaMemcpy2DAsync(
        self, target: int, pitch: int, source: int, source_pitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[()]:
        def copy() -> None:
            for row in range(height):
                ctypes.memmove(target + row * pitch, source + row * source_pitch, width)

        self.enqueue(stream, copy)
        return ()

    def _cudaMemsetAsync(self, target: int, value: int, size: int, stream: int) -> tuple[()]:
        self.enqueue(stream, lambda: ctypes.memset(target, value, size) and None)
        return ()

    def _cudaEventRecord(self, event: str, stream: int) -> tuple[()]:
        self.events[event] = (stream, len(self.streams[stream]))
        return ()

    def _cudaStreamWaitEvent(self, stream: int, event: str, flags: int) -> tuple[()]:
        recorded = self.events[event]
        assert recorded is not None
        assert flags == 0
        self.enqueue(stream, lambda: self.run(*recorded))
        return ()

    def _cudaEventSynchronize(self, event: str) -> tuple[()]:
        recorded = self.events[event]
        assert recorded is not None
        self.run(*recorded)
        return ()

    def _cudaStreamSynchronize(self, stream: int) -> tuple[()]:
        self.run(stream)
        return ()

    def _cudaEventElapsedTime(self, first: str, second: str) -> tuple[float]:
        one, two = self.events[first], self.events[second]
        assert one is not None
        assert two is not None
        assert self.done[two[0]] >= two[1], "this event has not happened yet"
        return (float(two[1] - one[1]),)

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[()]:
        assert mode == self._real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert self.recording is None
        self.recording = []
        return ()

    def _cudaStreamEndCapture(self, stream: int) -> tuple[str]:
        graph = self._make("graph")
        assert self.recording is not None
        self.graphs[graph], self.recording = self.recording, None
        return (graph,)

    def _cudaGraphInstantiate(self, graph: str, flags: int) -> tuple[str]:
        assert flags == 0
        executable = self._make("executable")
        self.graphs[executable] = self.graphs[graph]
        return (executable,)

    def _cudaGraphLaunch(self, graph: str, stream: int) -> tuple[()]:
        for work in self.graphs[graph]:
            self.enqueue(stream, work)
        return ()

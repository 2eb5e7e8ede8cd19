# ruff: noqa: N802, N815, ARG002 - names and arguments are CUDA's
"""Fakes of the CUDA runtime and of TensorRT, which run the work of a stream as late as CUDA may run it.

Work runs only at a synchronization. So an engine that forgets to synchronize reads memory that is not written yet, and
an engine that lets two streams run without an order between them reads old data.
"""

import ctypes
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np


class FakeGpu:
    """Fake of `cuda.bindings.runtime`; the GPU's memory is memory of the host."""

    cudaMemcpyKind = types.SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        self.cudaError_t = types.SimpleNamespace(
            cudaSuccess=types.SimpleNamespace(name="cudaSuccess"),
            cudaErrorInsufficientDriver=types.SimpleNamespace(name="cudaErrorInsufficientDriver"),
        )
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

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == self.failing:
                if name == "cudaStreamEndCapture":
                    self.recording = None
                status = types.SimpleNamespace(name="cudaErrorOfTheTest")
                return (status,) if name == "cudaStreamBeginCapture" else (status, None)
            return (self.cudaError_t.cudaSuccess, *getattr(self, f"_{name}", lambda *_: ())(*arguments))

        call.__name__ = name
        return call

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

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:
        assert flags == self.cudaStreamNonBlocking
        stream = 100 + len(self.streams)
        self.streams[stream], self.done[stream] = [], 0
        self.alive.add(str(stream))
        return (stream,)

    def _cudaStreamDestroy(self, stream: int) -> tuple[()]:
        self.alive.remove(str(stream))
        return ()

    def _cudaEventCreate(self) -> tuple[str]:
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
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
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


class FakeTensorRT:
    """Fake of module, runtime and engine: a tile's first byte is its best score, its index modulo 3 the label."""

    ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="ours")
    device_memory_size_v2 = 5000

    def __init__(
        self,
        gpu: FakeGpu,
        *,
        k: int = 354,
        refuse: str = "",
        profiles: tuple[int, ...] = (4,),
        rtx: bool | None = None,
        sides: tuple[int, int] | None = None,
    ) -> None:
        self.sides = sides
        self.gpu, self.k, self.refuse, self.profiles, self.rtx = gpu, k, refuse, profiles, rtx
        self.contexts: list[FakeExecutionContext] = []
        self.num_io_tensors = 4
        self.num_optimization_profiles = len(profiles)

        class ILogger:
            INTERNAL_ERROR, ERROR = "internal", "error"

        self.ILogger = ILogger

    def Runtime(self, log: Any) -> Any:
        self.log = log
        if self.refuse == "start":
            raise TypeError("pybind11::init(): factory function returned nullptr")  # as the bindings do
        return self

    def deserialize_cuda_engine(self, _plan: bytes) -> Any:
        if self.refuse == "plan":
            self.log.log("error", "Magic tag does not match")
            return None
        return self

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == self.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.refuse == "memory":
            return None
        self.contexts.append(FakeExecutionContext(self))
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return ["tiles", "boxes", "scores", "labels"][index]

    def get_tensor_dtype(self, name: str) -> Any:
        return {"tiles": np.uint8, "labels": np.int64}.get(name, np.float32)

    def nptype(self, dtype: Any) -> Any:
        if self.refuse == "type":
            raise TypeError(
                "Could not resolve TensorRT datatype to an equivalent numpy datatype."
            )  # as the bindings do
        return dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tile = (64, 64) if self.sides is None else (-1, -1)
        return {"tiles": (-1, 3, *tile), "boxes": (-1, self.k, 4)}.get(name, (-1, self.k))

    def get_tensor_profile_shape(self, _name: str, profile: int) -> Any:
        largest = 1 if self.refuse == "batch" else self.profiles[profile]
        low, high = self.sides or (64, 64)
        return [(1, 3, low, low), (1, 3, 64, 64), (largest, 3, high, high)]


class FakeExecutionContext:
    """Fake of an execution context, which must be complete before it runs, and must run before it is captured."""

    def __init__(self, engine: FakeTensorRT) -> None:
        self.engine, self.gpu = engine, engine.gpu
        self.addresses: dict[str, int] = {}
        self.batch, self.profile, self.ran, self.scratch = 0, -1, False, 0
        if engine.rtx is not None:
            self.is_stream_capturable = lambda _stream: engine.rtx

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.scratch = address

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert stream in self.gpu.streams
        if self.engine.refuse == "profile":
            self.engine.log.log("error", "Profile 0 has been chosen by another context")
            raise RuntimeError("Error in set optimization profile async.")  # as the bindings do
        self.profile = number
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert (name, shape[1]) == ("tiles", 3)
        low, high = self.engine.sides or (64, 64)
        assert all(low <= side <= high for side in shape[2:])
        self.batch, self.tile_bytes, self.ran = shape[0], math.prod(shape[1:]), False
        return shape[0] <= self.engine.profiles[self.profile] and self.engine.refuse != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.engine.refuse != "address" or name != "boxes"

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch in self.gpu.memory
        assert set(self.addresses) == {"tiles", "boxes", "scores", "labels"}
        recording = self.gpu.recording is not None
        assert not (recording and not self.ran), "a context is run before it is recorded"
        if self.engine.refuse == "run" or (recording and self.engine.refuse == "recording"):
            return False
        self.ran = True
        self.gpu.enqueue(stream, self.compute)
        return True

    def compute(self) -> None:
        batch, k = self.batch, self.engine.k
        tiles = np.frombuffer(ctypes.string_at(self.addresses["tiles"], batch * self.tile_bytes), np.uint8).reshape(
            batch, -1
        )
        scores, labels = np.zeros((batch, k), np.float32), np.zeros((batch, k), np.int64)
        scores[:, 0], labels[:, 0] = tiles[:, 0] / 255, np.arange(batch) % 3
        for name, array in (("scores", scores), ("labels", labels), ("boxes", np.zeros((batch, k, 4), np.float32))):
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)

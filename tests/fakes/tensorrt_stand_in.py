"""TensorRT's own Python bindings on a stand-in for its libraries, `nvinfer_stand_in.cpp`.

The bindings are those that are installed, or, for tests of other versions, those in the folder BINDINGS_VARIABLE.
"""

import ctypes
import importlib
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from unittest import SkipTest

import onnx

from fakes.fake_cuda import FakeGpu

BINDINGS_VARIABLE = "IFKD_TENSORRT_BINDINGS"
SOURCE = Path(__file__).with_name("nvinfer_stand_in.cpp")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
TYPES = {
    onnx.TensorProto.FLOAT: 0,
    onnx.TensorProto.FLOAT16: 1,
    onnx.TensorProto.UINT8: 5,
    onnx.TensorProto.BFLOAT16: 7,
    onnx.TensorProto.INT64: 8,
}
"""ONNX type -> number of TensorRT's DataType."""


def build_libraries(folder: Path, major: int) -> None:
    """Compile the stand-in for TensorRT 10 or 11 into a new folder; a test is skipped without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise SkipTest("there is no C++ compiler")
    folder.mkdir()
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        source = [SOURCE] if name == "nvinfer" else ["-x", "c++", os.devnull]
        command = [compiler, "-std=c++17", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library]
        subprocess.run([*map(str, command), *map(str, source)], check=True)


def installed_major() -> int:
    """Return the major version of the bindings; a test is skipped without them."""
    folder = os.environ.get(BINDINGS_VARIABLE)
    found = distributions(path=[folder]) if folder else distributions()
    versions = [one.version for one in found if re.fullmatch(r"tensorrt.cu\d+.bindings", one.name)]
    if not versions:
        raise SkipTest("TensorRT's Python bindings are not installed")
    return int(versions[0].partition(".")[0])


@dataclass(frozen=True)
class Context:
    """State of an execution context at its last inference."""

    batch: int
    profile: int
    scratch: int
    """Address of its scratch memory."""


class StandIn:
    """The module `tensorrt` on the stand-in, and what the tests set and read in it."""

    def __init__(self, folder: Path) -> None:
        """Load the libraries and the bindings."""
        for name in LIBRARIES:
            (path,) = folder.glob(f"lib{name}.so.*")
            library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            if name == "nvinfer":
                self._library = library
        if BINDINGS_VARIABLE in os.environ:
            sys.path.insert(0, os.environ[BINDINGS_VARIABLE])
        bindings = importlib.import_module("tensorrt_bindings")
        self.version = str(bindings.__version__)
        self.module = types.ModuleType("tensorrt")
        # As the package `tensorrt` does.
        self.module.__dict__.update({name: value for name, value in vars(bindings).items() if name[0] != "_"})
        self.module.__version__ = self.version  # type: ignore[attr-defined]
        self._library.stand_in_mistakes.restype = ctypes.c_char_p
        self._library.stand_in_compute.argtypes = [ctypes.c_void_p]
        self._library.stand_in_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library.stand_in_address.restype = ctypes.c_void_p
        self._library.stand_in_tile_bytes.argtypes = [ctypes.c_void_p]
        self._library.stand_in_tile_bytes.restype = ctypes.c_int64
        describe = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(self._describe)
        numbers = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_int64, ctypes.c_bool]
        enqueue = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, *numbers)(self._enqueue)
        self._callbacks = (describe, enqueue)
        self.reset()

    def reset(self, gpu: FakeGpu | None = None) -> None:
        """Forget what a test did, and run inferences on another fake GPU.

        `parser_error` is the reason why ONNX files are refused, `layers` what the inspector of built engines tells.
        """
        self._library.stand_in_connect(*self._callbacks)  # in place of another object's
        self.gpu, self.parser_error, self.layers = gpu, "", "{}"
        self._contexts: dict[int, Context] = {}
        self.refuse("")

    def refuse(self, what: str) -> None:
        """Let a step fail from now on."""
        self._refused = what
        self._library.stand_in_refuse(what.encode())

    @property
    def alive(self) -> int:
        """Number of objects of the libraries that are not deleted."""
        return int(self._library.stand_in_alive())

    @property
    def contexts(self) -> list[Context]:
        """Execution contexts that ran, the first one first."""
        return list(self._contexts.values())

    @property
    def mistakes(self) -> list[str]:
        """Wrong uses of the libraries since the last call."""
        return self._library.stand_in_mistakes().decode().splitlines()

    def address(self, context: int, tensor: str) -> int:
        """Return the address of a tensor on the GPU, as an execution context has it."""
        return int(self._library.stand_in_address(context, tensor.encode()))

    def tile_bytes(self, context: int) -> int:
        """Return the number of bytes of a tile of an execution context."""
        return int(self._library.stand_in_tile_bytes(context))

    def _describe(self, path: bytes) -> int:
        """Return the address of a plan's lines about the tensors of an ONNX file."""
        if self.parser_error:
            text = f"error {self.parser_error}"
        else:
            graph = onnx.load(path.decode(), load_external_data=False).graph
            lines = [_line("input", graph.input[0]), *(_line("output", one) for one in graph.output)]
            text = "\n".join([*lines, f"layers {self.layers}", ""])
        self._text = ctypes.create_string_buffer(text.encode())
        return ctypes.addressof(self._text)

    def _enqueue(self, context: int, stream: int, batch: int, profile: int, scratch: int, has_run: bool) -> bool:
        gpu = self.gpu
        assert gpu is not None
        assert scratch in gpu.memory
        recording = gpu.recording is not None
        assert has_run or not recording, "a context is run before it is recorded"
        if recording and self._refused == "recording":
            return False
        self._contexts[context] = Context(batch, profile, scratch)
        gpu.enqueue(stream, lambda: self._library.stand_in_compute(context) and None)
        return True


def plan_of(
    *, k: int = 354, profiles: Sequence[int] = (4,), sides: tuple[int, int] | None = None, score_type: int = 0
) -> bytes:
    """Return an engine file for tiles of 64 px, or of a range of sides, with `k` candidates.

    Each profile accepts batches up to its number. `score_type` is the number of a DataType.
    """
    low, high = sides or (64, 64)
    axes = "64 64" if sides is None else "-1 -1"
    lines = [
        f"tensor input tiles 5 4 -1 3 {axes}",
        f"tensor output boxes 0 3 -1 {k} 4",
        f"tensor output scores {score_type} 2 -1 {k}",
        f"tensor output labels 8 2 -1 {k}",
        *(f"profile 4 1 3 {low} {low} 1 3 64 64 {batch} 3 {high} {high}" for batch in profiles),
    ]
    return "\n".join(lines).encode()


def _line(kind: str, value: Any) -> str:
    tensor = value.type.tensor_type
    dims = [one.dim_value if one.HasField("dim_value") else -1 for one in tensor.shape.dim]
    return " ".join(map(str, ["tensor", kind, value.name, TYPES[tensor.elem_type], len(dims), *dims]))

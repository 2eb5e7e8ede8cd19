"""TensorRT and cuda-bindings: late imports, names for annotations, log messages, and the GPU of this machine.

Neither package is typed. The aliases below name their classes in annotations.
"""

import contextlib
import importlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from export.bundle.engine_metadata import Builder
from ifkd.core.errors import EngineError, MissingExtraError

logger = logging.getLogger(__name__)

OLDEST_TENSORRT = (10, 1)
"""First version with `ICudaEngine.device_memory_size_v2`, which lets execution contexts share memory."""

OLDEST_CUDA_BINDINGS = (12, 9, 1)
"""First version that lets other threads run during a call and has `get_cuda_native_handle`."""

TENSORRT_EXTRAS = ("tensorrt-cu13", "tensorrt-cu12")
"""Extras that install TensorRT, for a driver of CUDA 13 or 12."""

Module: TypeAlias = Any
"""`tensorrt` or `tensorrt_rtx`; the next aliases are their classes."""
TrtBuilder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IHostMemory: TypeAlias = Any
ILogger: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
CudaRuntime: TypeAlias = Any
"""`cuda.bindings.runtime`; the next aliases are its types."""
CudaEvent: TypeAlias = Any
CudaFunction: TypeAlias = Any
CudaGraph: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    capability: str
    driver_cuda: str
    """Compute capability, such as 9.0, and the latest CUDA version that its driver supports, such as 13.0."""

    @property
    def slug(self) -> str:
        """The name as a part of file names, such as `nvidia-h200`."""
        return "-".join(re.findall(r"[a-z0-9]+", self.name.lower()))


class MessageLog:
    """Messages of TensorRT: errors are collected, all messages are logged."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def of(self, trt: Module) -> ILogger:
        """Return a logger object for a module."""
        errors, error_levels = self.errors, (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

        class Bridge(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in error_levels:
                    errors.append(message)
                logger.debug("%s: %s", severity, message)

        return Bridge()

    def first_error(self) -> str:
        """Return the first error message."""
        return self.errors[0].strip() if self.errors else "without an error message"


@contextlib.contextmanager
def binding_errors(problem: str, log: MessageLog, *, hint: str | None = None) -> Iterator[None]:
    """Turn the exceptions with which TensorRT's bindings refuse a call into an EngineError.

    The log is emptied first, so that its first error is the reason.
    """
    log.errors.clear()
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raise EngineError(f"{problem} ({log.errors[0].strip() if log.errors else error})", hint=hint) from error


def load_tensorrt(builder: Builder) -> tuple[Module, str]:
    """Return the module of a builder and its version.

    Raises:
        MissingExtraError: The module is not installed.
        EngineError: The module's libraries cannot be loaded, or its version is too old.
    """
    extra = "export" if builder == "tensorrt_rtx" else TENSORRT_EXTRAS
    missing = MissingExtraError(builder.replace("_", "-"), extra=extra, need=f"Building and running {builder} engines")
    try:
        module = importlib.import_module(builder)
    except ImportError as error:
        if error.name == builder:
            raise missing from error
        raise EngineError(f"{builder} is installed but cannot be loaded ({error})") from error
    except OSError as error:
        raise EngineError(f"{builder} is installed but its libraries cannot be loaded ({error})") from error
    if not hasattr(module, "__version__"):  # Python imports any folder of this name
        raise missing
    version = str(module.__version__)
    if builder == "tensorrt" and release_of(version) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        raise EngineError("The installed TensorRT is too old", got=version, expected=f"at least {oldest}")
    return module, version


def load_cuda(need: str, extras: tuple[str, ...] = TENSORRT_EXTRAS) -> CudaRuntime:
    """Return the CUDA runtime's bindings, which `extras` install.

    Raises:
        EngineError: cuda-bindings is too old.
        MissingExtraError: cuda-bindings is not installed; the message begins with `need`.
    """
    try:
        from cuda import bindings  # noqa: PLC0415
        from cuda.bindings import runtime  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", extra=extras, need=need) from error
    version = str(bindings.__version__)
    if release_of(version, numbers=3) < OLDEST_CUDA_BINDINGS:
        oldest = ".".join(map(str, OLDEST_CUDA_BINDINGS))
        raise EngineError("The installed cuda-bindings is too old", got=version, expected=f"at least {oldest}")
    return runtime


def native_handle(handle: Any) -> int:
    """Return the address of a stream, as TensorRT takes it."""
    from cuda.bindings import utils  # noqa: PLC0415

    return int(utils.get_cuda_native_handle(handle))


def gpu_of_this_machine(need: str = "Detecting the GPU", extras: tuple[str, ...] = TENSORRT_EXTRAS) -> Gpu:
    """Return the first GPU; `need` and `extras` are as in `load_cuda`.

    Raises:
        EngineError: There is no GPU or no driver, or the driver is too old for cuda-bindings.
        MissingExtraError: cuda-bindings is not installed.
    """
    cuda: CudaRuntime = load_cuda(need, extras)
    _, number = cuda.cudaDriverGetVersion()
    status, properties = cuda.cudaGetDeviceProperties(0)
    if status == cuda.cudaError_t.cudaErrorInsufficientDriver and number:
        _, required = cuda.cudaRuntimeGetVersion()
        got, expected = f"a driver for CUDA {_cuda_version(number)}", f"one for CUDA {_cuda_version(required)}"
        hint = "Update the driver, or install the extra for it, which `ifkd doctor` names."
        raise EngineError("The GPU's driver is too old for cuda-bindings", got=got, expected=expected, hint=hint)
    if status != cuda.cudaError_t.cudaSuccess:
        hint = "TensorRT needs an NVIDIA GPU with a driver; TensorRT-RTX builds engines without a GPU."
        raise EngineError(f"This machine has no usable GPU ({status.name})", hint=hint)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.strip("\0 "), f"{properties.major}.{properties.minor}", _cuda_version(number))


def release_of(version: str, *, numbers: int = 2) -> tuple[int, ...]:
    """Return the first two or more numbers of a version such as 10.13.3.9."""
    return tuple(map(int, [*re.findall(r"\d+", version), *("0" * numbers)][:numbers]))


def _cuda_version(number: int) -> str:
    """Return the version of a CUDA version number, such as 13.0 for 13000."""
    return f"{number // 1000}.{number % 1000 // 10}"

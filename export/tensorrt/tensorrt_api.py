"""TensorRT and cuda-python: late imports, names for annotations, log messages, and the GPU of this machine.

Neither package is typed. The aliases below name their classes in annotations; with them, a test checks each attribute,
enum and call in the sources against the real packages.
"""

import importlib
import logging
from dataclasses import dataclass
from typing import Any, TypeAlias

from export.bundle.engine_metadata import Builder
from ifkd.core.errors import EngineError, MissingExtraError

logger = logging.getLogger(__name__)

OLDEST_TENSORRT = (10, 1)
"""First version with `ICudaEngine.device_memory_size_v2`, which lets execution contexts share memory."""

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


def load_tensorrt(builder: Builder) -> tuple[Module, str]:
    """Return the module of a builder and its version.

    Raises:
        MissingExtraError: The module is not installed.
        EngineError: The module's libraries cannot be loaded, or its version is too old.
    """
    try:
        module = importlib.import_module(builder)
    except ImportError as error:
        if error.name == builder:
            package, extra = ("tensorrt-rtx", "export") if builder == "tensorrt_rtx" else ("tensorrt", "tensorrt")
            raise MissingExtraError(package, extra=extra, need=f"Building and running {builder} engines") from error
        raise EngineError(f"{builder} is installed but cannot be loaded ({error})") from error
    except OSError as error:
        raise EngineError(f"{builder} is installed but its libraries cannot be loaded ({error})") from error
    version = str(module.__version__)
    if builder == "tensorrt" and release_of(version) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        raise EngineError("The installed TensorRT is too old", got=version, expected=f"at least {oldest}")
    return module, version


def load_cuda(need: str) -> CudaRuntime:
    """Return the CUDA runtime's bindings.

    Raises:
        MissingExtraError: cuda-python is not installed; the message begins with `need`.
    """
    try:
        from cuda.bindings import runtime  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("cuda-python", extra="tensorrt", need=need) from error
    return runtime


def gpu_of_this_machine() -> Gpu:
    """Return the first GPU.

    Raises:
        EngineError: There is no GPU or no driver, or the driver is too old for cuda-python.
        MissingExtraError: cuda-python is not installed.
    """
    cuda: CudaRuntime = load_cuda("Detecting the GPU")
    _, number = cuda.cudaDriverGetVersion()
    status, properties = cuda.cudaGetDeviceProperties(0)
    if status == cuda.cudaError_t.cudaErrorInsufficientDriver and number:
        _, required = cuda.cudaRuntimeGetVersion()
        got, expected = f"a driver for CUDA {_cuda_version(number)}", f"one for CUDA {_cuda_version(required)}"
        hint = "Update the driver, or install cuda-python of the driver's major version."
        raise EngineError("The GPU's driver is too old for cuda-python", got=got, expected=expected, hint=hint)
    if status != cuda.cudaError_t.cudaSuccess:
        hint = "TensorRT needs an NVIDIA GPU with a driver; TensorRT-RTX builds engines without a GPU."
        raise EngineError(f"This machine has no usable GPU ({status.name})", hint=hint)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.strip("\0 "), f"{properties.major}.{properties.minor}", _cuda_version(number))


def release_of(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as 10.13.3.9."""
    parts = [*version.split("."), "0"]
    return int(parts[0]), int(parts[1])


def _cuda_version(number: int) -> str:
    """Return the version of a CUDA version number, such as 13.0 for 13000."""
    return f"{number // 1000}.{number % 1000 // 10}"

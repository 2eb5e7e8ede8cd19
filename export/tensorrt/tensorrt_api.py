"""NVIDIA's software, asked for late and carefully: TensorRT's modules, its messages, and the GPU of this machine.

Neither TensorRT nor cuda-python can be imported everywhere and neither is typed, so their classes are named here for
annotations alone. A test takes the annotations at their word: it follows every value of these types through our
sources and looks up each attribute, enum and argument list in the real packages.
"""

import importlib
import logging
from dataclasses import dataclass
from typing import Any, TypeAlias

from export.bundle.engine_metadata import Builder
from ifkd.core.errors import EngineError, MissingExtraError

logger = logging.getLogger(__name__)

OLDEST_TENSORRT = (10, 1)
"""The first with `ICudaEngine.device_memory_size_v2`, by which execution contexts share memory."""

Module: TypeAlias = Any
"""`tensorrt` or `tensorrt_rtx`; below are classes of either."""
TrtBuilder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IHostMemory: TypeAlias = Any
ILogger: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
CudaRuntime: TypeAlias = Any
"""The module `cuda.bindings.runtime`; below are types of it."""
CudaEvent: TypeAlias = Any
CudaFunction: TypeAlias = Any
CudaGraph: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    capability: str
    """Compute capability, such as 9.0."""
    driver_cuda: str
    """The newest CUDA that its driver can run, such as 13.0."""


class MessageLog:
    """TensorRT's messages: errors are kept for our own errors, the rest goes to logging."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def of(self, trt: Module) -> ILogger:
        """Return the logger object of a module."""
        outer = self
        grave = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

        class Bridge(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in grave:
                    outer.errors.append(message)
                logger.debug("%s: %s", severity, message)

        return Bridge()

    def first_error(self) -> str:
        """Return the first error, or that there was none."""
        return self.errors[0].strip() if self.errors else "it gave no reason"


def load_tensorrt(builder: Builder) -> tuple[Module, str]:
    """Return the module of a builder and its version.

    Raises:
        MissingExtraError: It is not installed.
        EngineError: Its libraries cannot be loaded, or it is too old.
    """
    try:
        module = importlib.import_module(builder)
    except ImportError as error:
        if error.name == builder:
            extra = "export" if builder == "tensorrt_rtx" else "tensorrt"
            need = f"Building and running {builder} engines"
            raise MissingExtraError(builder.replace("_", "-"), extra=extra, need=need) from error
        raise EngineError(f"{builder} is installed but cannot be loaded ({error})") from error
    except OSError as error:
        raise EngineError(f"{builder} is installed but its libraries cannot be loaded ({error})") from error
    version = str(module.__version__)
    if builder == "tensorrt" and release_of(version) < OLDEST_TENSORRT:
        raise EngineError(
            "This TensorRT is too old", got=version, expected=f"at least {'.'.join(map(str, OLDEST_TENSORRT))}"
        )
    return module, version


def load_cuda(need: str) -> CudaRuntime:
    """Return the CUDA runtime's bindings.

    Args:
        need: What they are needed for, the start of the error's sentence.

    Raises:
        MissingExtraError: cuda-python is not installed.
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
    cuda: CudaRuntime = load_cuda("Asking for the GPU")
    _, number = cuda.cudaDriverGetVersion()
    status, properties = cuda.cudaGetDeviceProperties(0)
    if status == cuda.cudaError_t.cudaErrorInsufficientDriver and number:
        _, wanted = cuda.cudaRuntimeGetVersion()
        raise EngineError(
            "The GPU's driver is too old for cuda-python",
            got=f"a driver for CUDA {_cuda_version(number)}",
            expected=f"one for CUDA {_cuda_version(wanted)}",
            hint="Update the driver, or install cuda-python of the driver's major version.",
        )
    if status != cuda.cudaError_t.cudaSuccess:
        raise EngineError(
            f"There is no GPU to use here ({status.name})",
            hint="TensorRT builds and runs on an NVIDIA GPU with a driver; TensorRT-RTX builds without one.",
        )
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.strip("\0 "), f"{properties.major}.{properties.minor}", _cuda_version(number))


def release_of(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as 10.13.3.9."""
    parts = [*version.split("."), "0"]
    return int(parts[0]), int(parts[1])


def _cuda_version(number: int) -> str:
    """Return 13.0 for 13000, as CUDA counts."""
    return f"{number // 1000}.{number % 1000 // 10}"

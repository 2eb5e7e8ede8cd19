"""Engines, one module for each runtime, imported when it is asked for."""

from typing import get_args

from deploy.engines.engine import Backend, Engine
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.errors import EngineError, UsageError

ON_GPU: tuple[Backend, ...] = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
"""Backends that need a GPU where they are opened."""


def open_engine(
    bundle: Bundle,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    server: str | None = None,
) -> Engine:
    """Load a bundle's model into a runtime.

    Args:
        bundle: Where the model is.
        backend: The runtime.
        precision: Which of the bundle's files.
        threads: CPU threads of the runtime; by default all cores the process may use.
        server: URL of the Triton server, or of a model on it; by default the one on this machine.

    Raises:
        BundleError: The bundle has no such file, or it was changed.
        EngineError: The runtime is absent or this machine cannot run the file.
        UsageError: A server is named for a backend that asks none, or by no address.
    """
    if server is not None and backend != "triton":
        raise UsageError(f"The backend {backend} asks no server", got=server, hint="Choose the backend triton.")
    match backend:
        case "onnxruntime" | "onnxruntime-cuda" | "onnxruntime-tensorrt":
            from deploy.engines.onnxruntime_engine import BACKENDS, OnnxRuntimeEngine  # noqa: PLC0415

            provider = next(name for name, one in BACKENDS.items() if one == backend)
            return OnnxRuntimeEngine(bundle, precision=precision, provider=provider, threads=threads)
        case "torch":
            from deploy.engines.torch_engine import TorchEngine  # noqa: PLC0415

            return TorchEngine(bundle, precision=precision, threads=threads)
        case "tensorrt":
            from deploy.engines.tensorrt_engine import TensorRTEngine  # noqa: PLC0415

            return TensorRTEngine(bundle, precision=precision)
        case "triton":
            from deploy.engines.triton_engine import DEFAULT_SERVER, TritonEngine  # noqa: PLC0415

            return TritonEngine(bundle, precision=precision, server=server or DEFAULT_SERVER)
    raise EngineError(f"There is no backend {backend!r}", expected=", ".join(get_args(Backend)))

"""Inference engines: one module per runtime, imported when an engine of that runtime is opened."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import get_args

from deploy.engines.engine import Backend, Engine
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.errors import EngineError, UsageError

GPU_BACKENDS: tuple[Backend, ...] = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
"""Backends that need a GPU on the machine that opens them."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Choice of an engine for a bundle."""

    backend: Backend | None = "onnxruntime"
    precision: Precision | None = "fp32"
    """None for the best one, which `best_engine.chosen_options` returns."""
    threads: int | None = None
    """CPU threads of the runtime; by default all cores that the process may use."""
    server: str | None = None
    """URL of a Triton server or of a model on it; by default the server on this machine."""

    def open(self, bundle: Bundle) -> Engine:
        """Open the bundle's engine; see `open_engine`."""
        return self.opener()(bundle)

    def opener(self) -> Callable[[Bundle], Engine]:
        """Return a function that opens an engine, for another process."""
        return partial(open_engine, **asdict(self))


def open_engine(
    bundle: Bundle,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    server: str | None = None,
) -> Engine:
    """Load a bundle's model into a runtime; the options are those of `EngineOptions`.

    Raises:
        BundleError: The bundle has no file of this precision, or its digest differs.
        EngineError: The runtime is not available, or this machine cannot run the file.
        UsageError: The server's URL is invalid, or the backend uses no server.
    """
    if server is not None and backend != "triton":
        raise UsageError(f"The backend {backend} uses no server", got=server, hint="Choose the backend triton.")
    match backend:
        case "onnxruntime" | "onnxruntime-cuda" | "onnxruntime-tensorrt":
            from deploy.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415

            return OnnxRuntimeEngine(bundle, backend=backend, precision=precision, threads=threads)
        case "openvino":
            from deploy.engines.openvino_engine import OpenVinoEngine  # noqa: PLC0415

            return OpenVinoEngine(bundle, precision=precision, threads=threads)
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

"""Choose the TensorRT engine of a bundle that this machine can run, from the engines' metadata.

TensorRT reports a version or GPU mismatch late and with little detail, so no engine file is opened here.
"""

from dataclasses import dataclass
from pathlib import Path

from export.bundle.bundle import Bundle
from export.bundle.engine_metadata import PORTABLE, EngineMetadata, engine_metadata_path, read_engine_metadata
from export.bundle.manifest import Precision
from export.tensorrt import tensorrt_api
from export.tensorrt.tensorrt_api import Gpu, load_tensorrt, release_of
from ifkd.core.errors import EngineError, IfkdError


@dataclass(frozen=True, slots=True)
class CompatibleEngine:
    """An engine file that this machine can run according to its metadata."""

    name: str
    metadata: EngineMetadata
    trt: tensorrt_api.Module
    """Module of the runtime."""


def find_engine(bundle: Bundle, *, precision: Precision, gpu: Gpu) -> CompatibleEngine:
    """Return a compatible engine of a precision: one without TF32, and of those the one for the fewest GPUs.

    The runtime is imported only for an engine that fits the bundle and the GPU.

    Raises:
        BundleError: The metadata of an engine is invalid.
        EngineError: No engine is compatible; the message has the reason for each engine.
    """
    compatible, reasons = [], []
    for name in bundle.find("engine", precision):
        metadata = read_engine_metadata(bundle.file(str(engine_metadata_path(Path(name)))))
        reason = _bundle_mismatch(metadata, bundle, name) or _gpu_mismatch(metadata, gpu)
        engine = reason or _with_runtime(name, metadata)
        if isinstance(engine, str):
            reasons.append(f"{name}: {engine}")
        else:
            compatible.append(engine)
    if not compatible:
        raise EngineError(
            f"No {precision} engine of {bundle.path} fits this machine",
            got="; ".join(reasons) or "a bundle without such an engine",
            expected=f"an engine for {gpu.name} (compute capability {gpu.capability})",
            hint=f"Build one on this machine: ifkd engine {bundle.path} --builder tensorrt --precision {precision}",
        )
    return min(compatible, key=lambda engine: _preference(engine.metadata))


def _preference(metadata: EngineMetadata) -> tuple[bool, int]:
    """Return the sort key of an engine, smaller for one that is more accurate or for fewer GPUs."""
    order = ("none", "same_compute_capability", "ampere_plus", PORTABLE)
    return metadata.tf32, order.index(PORTABLE if metadata.device == PORTABLE else metadata.compatibility)


def _with_runtime(name: str, metadata: EngineMetadata) -> CompatibleEngine | str:
    """Return an engine with its runtime, or the reason why the installed runtime cannot run it."""
    try:
        trt, version = load_tensorrt(metadata.builder)
    except IfkdError as error:
        return str(error)
    if metadata.builder_version != version:
        return f"it was built by {metadata.builder} {metadata.builder_version}, installed is {version}"
    return CompatibleEngine(name, metadata, trt)


def _bundle_mismatch(metadata: EngineMetadata, bundle: Bundle, name: str) -> str | None:
    """Return the reason why an engine does not fit the bundle, or None."""
    files = bundle.manifest.files
    if metadata.engine_sha256 != files[name].sha256:
        return "its metadata describes another file"
    if metadata.onnx_sha256 not in [files[source].sha256 for source in bundle.find("onnx", files[name].precision)]:
        return f"it was built from another ONNX file than the bundle's {files[name].precision} file"
    return None


def _gpu_mismatch(metadata: EngineMetadata, gpu: Gpu) -> str | None:
    """Return the reason why an engine does not fit the GPU or its driver, or None."""
    this_gpu = f"this GPU is {gpu.name} ({gpu.capability})"
    if metadata.device == PORTABLE:
        if gpu.capability in {"8.0", "8.6", "8.9"} or release_of(gpu.capability) >= (12, 0):
            return None  # the capabilities that TensorRT-RTX's documentation lists
        needed = "8.0, 8.6, 8.9, 12.0 and later"
        return f"portable engines need compute capability {needed}, {this_gpu}"
    match metadata.compatibility:
        case "ampere_plus":
            fits, target = release_of(gpu.capability) >= (8, 0), "GPUs of compute capability 8.0 and later"
        case "same_compute_capability":
            target = f"GPUs of compute capability {metadata.compute_capability}"
            fits = metadata.compute_capability == gpu.capability
        case "none":
            target = f"{metadata.device} ({metadata.compute_capability})"
            fits = (metadata.device, metadata.compute_capability) == (gpu.name, gpu.capability)
    if not fits:
        return f"it was built for {target}, {this_gpu}"
    # A driver runs code that was compiled for any minor version of its major version.
    if metadata.driver_cuda is not None and release_of(gpu.driver_cuda)[0] < release_of(metadata.driver_cuda)[0]:
        return f"it was built with a driver for CUDA {metadata.driver_cuda}, this driver supports {gpu.driver_cuda}"
    return None

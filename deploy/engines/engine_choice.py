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
    """Return a compatible engine of a precision; an engine built for this GPU is preferred to a portable one.

    Raises:
        BundleError: The metadata of an engine is invalid.
        EngineError: No engine is compatible; the message has the reason for each engine.
    """
    reasons, compatible = [], []
    for name in bundle.find("engine", precision):
        metadata = read_engine_metadata(bundle.file(str(engine_metadata_path(Path(name)))))
        try:
            trt, version = load_tensorrt(metadata.builder)
        except IfkdError as error:
            reasons.append(f"{name}: {error}")
            continue
        reason = _incompatibility(metadata, bundle, name, version=version) or _gpu_incompatibility(metadata, gpu)
        if reason is None:
            compatible.append(CompatibleEngine(name, metadata, trt))
        else:
            reasons.append(f"{name}: {reason}")
    if not compatible:
        raise EngineError(
            f"No {precision} engine of {bundle.path} fits this machine",
            got="; ".join(reasons) or "a bundle without such an engine",
            expected=f"an engine for {gpu.name} (compute capability {gpu.capability})",
            hint=f"Build one on this machine: ifkd engine {bundle.path} --builder tensorrt --precision {precision}",
        )
    return min(compatible, key=lambda engine: engine.metadata.device == PORTABLE)


def _incompatibility(metadata: EngineMetadata, bundle: Bundle, name: str, *, version: str) -> str | None:
    """Return the reason why an engine does not fit the bundle or the installed runtime, or None."""
    if metadata.engine_sha256 != bundle.manifest.files[name].sha256:
        return "its metadata describes another file"
    if metadata.onnx_sha256 not in [bundle.manifest.files[file].sha256 for file in bundle.find("onnx")]:
        return "it was built from another ONNX file than those of the bundle"
    if metadata.builder_version != version:
        return f"it was built by {metadata.builder} {metadata.builder_version}, installed is {version}"
    return None


def _gpu_incompatibility(metadata: EngineMetadata, gpu: Gpu) -> str | None:
    """Return the reason why an engine does not fit the GPU or its driver, or None."""
    if metadata.device == PORTABLE:
        if gpu.capability in {"8.0", "8.6", "8.9"} or int(gpu.capability.split(".")[0]) >= 12:
            return None  # the capabilities that TensorRT-RTX's documentation lists
        needed = "8.0, 8.6, 8.9, 12.0 and later"
        return f"portable engines need compute capability {needed}, this GPU has {gpu.capability}"
    if (metadata.device, metadata.compute_capability) != (gpu.name, gpu.capability):
        built_for = f"{metadata.device} ({metadata.compute_capability})"
        return f"it was built for {built_for}, this GPU is {gpu.name} ({gpu.capability})"
    # A driver runs code that was compiled for any minor version of its major version.
    if metadata.driver_cuda is not None and release_of(gpu.driver_cuda)[0] < release_of(metadata.driver_cuda)[0]:
        return f"it was built with a driver for CUDA {metadata.driver_cuda}, this driver supports {gpu.driver_cuda}"
    return None

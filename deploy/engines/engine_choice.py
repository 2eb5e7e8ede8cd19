"""Which of a bundle's engine files this machine can run, from their sidecars alone.

Opening a plan of another version or GPU fails late and says little, so nothing is opened here.
"""

from dataclasses import dataclass
from pathlib import Path

from export.bundle.bundle import Bundle
from export.bundle.engine_metadata import PORTABLE, EngineMetadata, engine_metadata_path, read_engine_metadata
from export.bundle.manifest import Precision
from export.tensorrt import tensorrt_api
from export.tensorrt.tensorrt_api import Gpu, load_tensorrt, release_of
from ifkd.core.errors import EngineError, IfkdError

PORTABLE_CAPABILITIES = "8.0, 8.6, 8.9, 12.0 and later"
"""GPUs that TensorRT-RTX's documentation names for portable engines."""


@dataclass(frozen=True, slots=True)
class Fit:
    """An engine file that this machine should be able to run."""

    name: str
    sidecar: EngineMetadata
    trt: tensorrt_api.Module
    """The runtime's module."""


def find_engine(bundle: Bundle, *, precision: Precision, gpu: Gpu) -> Fit:
    """Return the engine of a bundle that fits this machine; one built for this GPU goes first.

    Args:
        bundle: Where the engines are.
        precision: Which engines.
        gpu: The GPU of this machine.

    Raises:
        BundleError: A sidecar does not hold.
        EngineError: None fits; the message says why, engine by engine.
    """
    reasons, fits = [], []
    for name in bundle.find("engine", precision):
        sidecar = read_engine_metadata(bundle.file(str(engine_metadata_path(Path(name)))))
        try:
            trt, version = load_tensorrt(sidecar.builder)
        except IfkdError as error:
            reasons.append(f"{name}: {error}")
            continue
        reason = unfit_because(sidecar, bundle, name, version=version, gpu=gpu)
        if reason is None:
            fits.append(Fit(name, sidecar, trt))
        else:
            reasons.append(f"{name}: {reason}")
    if not fits:
        raise EngineError(
            f"No {precision} engine of {bundle.path} fits this machine",
            got="; ".join(reasons) or "a bundle without such an engine",
            expected=f"an engine for {gpu.name} (compute capability {gpu.capability})",
            hint=f"Build one here: ifkd engine {bundle.path} --builder tensorrt --precision {precision}",
        )
    return min(fits, key=lambda fit: fit.sidecar.device == PORTABLE)


def unfit_because(sidecar: EngineMetadata, bundle: Bundle, name: str, *, version: str, gpu: Gpu) -> str | None:
    """Return why an engine cannot be opened here, or None when nothing speaks against it."""
    if sidecar.engine_sha256 != bundle.manifest.files[name].sha256:
        return "its sidecar describes another file"
    sources = [bundle.manifest.files[file].sha256 for file in bundle.find("onnx")]
    if sidecar.onnx_sha256 not in sources:
        return "it was built from another ONNX file than the bundle has"
    if sidecar.builder_version != version:
        return f"it was built by {sidecar.builder} {sidecar.builder_version}, here is {version}"
    return _other_machine(sidecar, gpu)


def _other_machine(sidecar: EngineMetadata, gpu: Gpu) -> str | None:
    """Return why an engine does not fit the GPU and its driver, or None."""
    if sidecar.device == PORTABLE:
        major, minor = (int(part) for part in gpu.capability.split("."))
        if (major, minor) not in {(8, 0), (8, 6), (8, 9)} and major < 12:
            return f"portable engines run on compute capability {PORTABLE_CAPABILITIES}, here is {gpu.capability}"
        return None
    if (sidecar.device, sidecar.compute_capability) != (gpu.name, gpu.capability):
        built_for = f"{sidecar.device} ({sidecar.compute_capability})"
        return f"it was built for {built_for}, here is {gpu.name} ({gpu.capability})"
    # Within a major version, drivers run what was compiled for any of its minor ones.
    if sidecar.driver_cuda is not None and release_of(gpu.driver_cuda)[0] < release_of(sidecar.driver_cuda)[0]:
        built_under = f"it was built under a driver for CUDA {sidecar.driver_cuda}"
        return f"{built_under}, the driver here goes up to CUDA {gpu.driver_cuda}"
    return None

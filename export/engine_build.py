"""ONNX becomes an engine: by TensorRT-RTX, without a GPU, or by TensorRT 10 and 11, for the GPU of this machine.

Every engine has a sidecar, the JSON file of the same name, that says for which device and version it was built,
from which ONNX file, and which precision was asked for and delivered. Who opens an engine reads the sidecar first.
"""

import contextlib
import importlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.bundle import Bundle, add_file
from export.manifest import Precision
from export.precision import require_precision
from export.sidecar import (
    FIXED_BYTES,
    KERNEL_BYTES,
    PORTABLE,
    BatchProfile,
    Builder,
    BuildOptions,
    DeliveredPrecision,
    EngineSidecar,
    require_delivered,
    sidecar_path,
)
from ifkd.errors import BundleError, EngineError, MissingExtraError
from ifkd.files import atomic_path, sha256_of, write_json
from ifkd.progress import progress

logger = logging.getLogger(__name__)

OLDEST_TENSORRT = 10
LARGEST_OPTIMAL_BATCH = 8


def build_engine(
    onnx_path: Path,
    *,
    builder: Builder,
    precision: Precision,
    max_batch: int,
    out: Path,
    options: BuildOptions | None = None,
) -> EngineSidecar:
    """Build an engine and write it to `out`, with its sidecar beside it.

    Args:
        onnx_path: A file whose convolutions have `precision`.
        builder: `tensorrt_rtx` needs no GPU; `tensorrt` builds for the GPU of this machine.
        precision: What the file is expected to be; checked, not converted.
        max_batch: Largest batch the engine takes.
        out: The engine file.
        options: By default those of `BuildOptions`.

    Raises:
        EngineError: The file has another precision, the builder refuses it, or delivers less than was asked.
        MissingExtraError: The builder is not installed.
    """
    options = options or BuildOptions()
    census = require_precision(onnx_path, precision)
    trt, version = load_builder(builder)
    device, capability = (PORTABLE, None) if builder == "tensorrt_rtx" else gpu_of_this_machine()
    batch = BatchProfile(opt=min(options.opt_batch or LARGEST_OPTIMAL_BATCH, max_batch), max=max_batch)
    log = _Log()
    started = time.perf_counter()
    trt_builder = trt.Builder(log.of(trt))
    network = _parse(trt, trt_builder, onnx_path, log, version)
    config = trt_builder.create_builder_config()
    _configure(trt, config, builder, options)
    tile_px = _add_profile(trt_builder, config, network, batch)
    cache = options.timing_cache if builder == "tensorrt" else None
    with _shown(trt, config, f"building {out.name}"), _timings(config, cache):
        plan = trt_builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{builder} {version} cannot build {onnx_path.name} ({log.first_error()})")
    seconds = time.perf_counter() - started
    size = memoryview(plan).nbytes
    delivered = DeliveredPrecision(
        weight_types=dict(census.weight_types),
        engine_to_weights=round(size / census.weight_bytes, 3),
        weights_to_weights=round(
            (size - FIXED_BYTES - KERNEL_BYTES.get(precision, 0) * census.layers) / census.weight_bytes, 3
        ),
        layers=_layer_formats(trt, log, plan) if builder == "tensorrt" else None,
    )
    require_delivered(delivered, precision, out.name)
    with atomic_path(out) as temporary:
        temporary.write_bytes(memoryview(plan))
    sidecar = EngineSidecar(
        device=device,
        compute_capability=capability,
        builder=builder,
        builder_version=version,
        onnx=onnx_path.name,
        onnx_sha256=sha256_of(onnx_path),
        engine_sha256=sha256_of(out),
        engine_bytes=size,
        batch=batch,
        tile_px=tile_px,
        workspace_mib=options.workspace_mib,
        level=options.level,
        compatibility=options.compatibility,
        tf32=options.tf32,
        build_seconds=round(seconds, 3),
        precision_asked=precision,
        precision_delivered=delivered,
    )
    write_json(sidecar_path(out), sidecar.model_dump(mode="json"))
    return sidecar


def add_engine(
    bundle: Bundle,
    *,
    builder: Builder,
    precision: Precision,
    options: BuildOptions | None = None,
) -> tuple[Bundle, str, EngineSidecar]:
    """Build an engine from a bundle's ONNX file and record it in the bundle.

    Returns:
        The bundle with its new manifest, the engine's name in it, and the sidecar.

    Raises:
        BundleError: The bundle has no such ONNX file, or it was changed.
        EngineError: The builder refuses it.
    """
    onnx_path = onnx_of(bundle, precision)
    _, version = load_builder(builder)
    device = PORTABLE if builder == "tensorrt_rtx" else _slug(gpu_of_this_machine()[0])
    arithmetic = f"{precision}-tf32" if options is not None and options.tf32 else precision
    stem = f"{device}-{builder.replace('_', '-')}{version}-{arithmetic}"
    name = f"engines/{stem}.engine"
    sidecar = build_engine(
        onnx_path,
        builder=builder,
        precision=precision,
        max_batch=bundle.manifest.input.max_batch,
        out=bundle.path / name,
        options=options,
    )
    bundle = add_file(bundle, name, kind="engine", precision=precision)
    side_name = str(sidecar_path(Path(name)))
    return add_file(bundle, side_name, kind="sidecar", precision=precision), name, sidecar


def onnx_of(bundle: Bundle, precision: Precision) -> Path:
    """Return a bundle's ONNX file of a precision.

    Raises:
        BundleError: There is none, or it was changed.
    """
    names = bundle.find("onnx", precision)
    if not names:
        have = sorted({str(bundle.manifest.files[name].precision) for name in bundle.find("onnx")})
        raise BundleError(
            f"{bundle.path} has no ONNX file in {precision}",
            expected=f"one of {', '.join(have)}",
            mend="Export the checkpoint with this precision.",
        )
    return bundle.file(names[0])


def load_builder(builder: Builder) -> tuple[Any, str]:
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
    if builder == "tensorrt" and _major(version) < OLDEST_TENSORRT:
        raise EngineError("This TensorRT is too old", got=version, expected=f"at least {OLDEST_TENSORRT}.0")
    return module, version


def gpu_of_this_machine() -> tuple[str, str]:
    """Return name and compute capability of the first GPU.

    Raises:
        EngineError: There is no GPU or no driver.
        MissingExtraError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as cuda  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("cuda-python", extra="tensorrt", need="Asking for the GPU") from error
    status, properties = cuda.cudaGetDeviceProperties(0)
    if status != cuda.cudaError_t.cudaSuccess:
        raise EngineError(
            f"There is no GPU to use here ({status.name})",
            mend="TensorRT builds and runs on an NVIDIA GPU with a driver; TensorRT-RTX builds without one.",
        )
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return name.strip("\0 "), f"{properties.major}.{properties.minor}"


class _Log:
    """A builder's messages: errors are kept for our own error, the rest goes to logging."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def of(self, trt: Any) -> Any:
        """Return the logger object of a builder module."""
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
        return self.errors[0].strip() if self.errors else "it gave no reason"


def _configure(trt: Any, config: Any, builder: Builder, options: BuildOptions) -> None:
    """Tell a builder the options."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.level
    # TensorRT allows TF32 unless it is told not to, and an "FP32" engine would then not be one.
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if builder == "tensorrt" and options.compatibility != "none":
        level = options.compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)


def _parse(trt: Any, trt_builder: Any, onnx_path: Path, log: _Log, version: str) -> Any:
    """Return the network of an ONNX file, strongly typed."""
    flags = 0
    if trt.__name__ == "tensorrt" and _major(version) == OLDEST_TENSORRT:
        # TensorRT 10 types weakly unless told; TensorRT 11 and RTX know nothing else.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt_builder.create_network(flags)
    parser = trt.OnnxParser(network, trt_builder.logger)
    if not parser.parse_from_file(str(onnx_path)):
        error = parser.get_error(0).desc() if parser.num_errors else log.first_error()
        raise EngineError(f"{trt.__name__} {version} cannot read {onnx_path.name} ({str(error).strip()})")
    return network


def _add_profile(trt_builder: Any, config: Any, network: Any, batch: BatchProfile) -> tuple[int, int]:
    """Tell the batch sizes and return the tile's (height, width)."""
    tiles = network.get_input(0)
    _, channels, height, width = tuple(tiles.shape)
    profile = trt_builder.create_optimization_profile()
    profile.set_shape(tiles.name, *((size, channels, height, width) for size in (batch.min, batch.opt, batch.max)))
    config.add_optimization_profile(profile)
    return int(height), int(width)


@contextlib.contextmanager
def _shown(trt: Any, config: Any, label: str) -> Iterator[None]:
    """Show the builder's outermost phase as progress."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Any] = {}

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                if not parent_phase:
                    bars[phase_name] = stack.enter_context(progress(num_steps, label, unit="step"))

            def step_complete(self, phase_name: str, step: int) -> bool:
                if phase_name in bars:
                    bars[phase_name].update(step + 1 - bars[phase_name].n)
                return True

            def phase_finish(self, phase_name: str) -> None:
                if phase_name in bars:
                    bar = bars.pop(phase_name)
                    bar.update(bar.total - bar.n)
                    bar.close()

        # The builder keeps no reference of its own, so the local name keeps the monitor alive while it builds.
        monitor = Monitor()
        config.progress_monitor = monitor
        yield


@contextlib.contextmanager
def _timings(config: Any, path: Path | None) -> Iterator[None]:
    """Give TensorRT the timings of earlier builds, and keep those of this one."""
    if path is None:
        yield
        return
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # Timings of another GPU or version are not taken over: the cache then starts empty.
    if not config.set_timing_cache(cache, False):  # noqa: FBT003
        config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003
    yield
    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _layer_formats(trt: Any, log: _Log, plan: Any) -> dict[str, int] | None:
    """Return the output formats of an engine's layers and how many layers have each."""
    engine = trt.Runtime(log.of(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    counts: dict[str, int] = {}
    for layer in layers:
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        for output in outputs[:1]:
            # TensorRT 11 splits what TensorRT 10 calls Format/Datatype.
            kind = str(output.get("Datatype") or output.get("Format/Datatype") or "unknown")
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items()))


def _major(version: str) -> int:
    return int(version.split(".", 1)[0])


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())

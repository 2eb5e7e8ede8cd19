"""ONNX becomes an engine: by TensorRT-RTX, without a GPU, or by TensorRT 10 and 11, for the GPU of this machine.

Every engine has a sidecar, the JSON file of the same name, that says for which device and version it was built,
from which ONNX file, and which precision was asked for and delivered. Who opens an engine reads the sidecar first.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from export.bundle.bundle import Bundle, add_file
from export.bundle.engine_metadata import (
    FIXED_BYTES,
    KERNEL_BYTES,
    PORTABLE,
    BatchProfile,
    Builder,
    BuildOptions,
    DeliveredPrecision,
    EngineMetadata,
    TileProfile,
    engine_metadata_path,
    require_delivered,
)
from export.bundle.manifest import Precision
from export.precision.fp16 import require_precision
from export.tensorrt import tensorrt_api
from export.tensorrt.tensorrt_api import MessageLog, gpu_of_this_machine, load_tensorrt, release_of
from ifkd.core.errors import BundleError, EngineError
from ifkd.core.files import atomic_path, sha256_of, write_json
from ifkd.core.input_shapes import InputShapes
from ifkd.core.progress import progress

LARGEST_OPTIMAL_BATCH = 8
LAST_WEAKLY_TYPED = 10
"""TensorRT's last major version whose networks are weakly typed unless told."""


def build_engine(
    onnx_path: Path,
    *,
    builder: Builder,
    precision: Precision,
    max_batch: int,
    out: Path,
    options: BuildOptions | None = None,
    sizes: InputShapes | None = None,
) -> EngineMetadata:
    """Build an engine and write it to `out`, with its sidecar beside it.

    Args:
        onnx_path: A file whose convolutions have `precision`.
        builder: `tensorrt_rtx` needs no GPU; `tensorrt` builds for the GPU of this machine.
        precision: What the file is expected to be; checked, not converted.
        max_batch: Largest batch the engine takes.
        out: The engine file.
        options: By default those of `BuildOptions`.
        sizes: Tiles that the file takes; may be left out where it takes one size alone.

    Raises:
        EngineError: The file has another precision, the builder refuses it, or delivers less than was asked.
        MissingExtraError: The builder is not installed.
    """
    options = options or BuildOptions()
    census = require_precision(onnx_path, precision)
    trt, version = load_tensorrt(builder)
    gpu = None if builder == "tensorrt_rtx" else gpu_of_this_machine()
    profiles = batch_profiles(options.opt_batch, max_batch)
    log = MessageLog()
    started = time.perf_counter()
    trt_builder = trt.Builder(log.of(trt))
    network = _parse(trt, trt_builder, onnx_path, log, version)
    config = trt_builder.create_builder_config()
    _configure(trt, config, builder, options)
    sizes = _add_profiles(trt_builder, config, network, profiles, sizes)
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
    sidecar = EngineMetadata(
        device=PORTABLE if gpu is None else gpu.name,
        compute_capability=None if gpu is None else gpu.capability,
        driver_cuda=None if gpu is None else gpu.driver_cuda,
        builder=builder,
        builder_version=version,
        onnx=onnx_path.name,
        onnx_sha256=sha256_of(onnx_path),
        engine_sha256=sha256_of(out),
        engine_bytes=size,
        batch=BatchProfile(opt=profiles[-1].opt, max=max_batch),
        profiles=profiles,
        tile_px=sizes.opt,
        tiles=None if sizes.side_range is None else TileProfile(min=sizes.smallest, opt=sizes.opt, max=sizes.largest),
        workspace_mib=options.workspace_mib,
        level=options.level,
        compatibility=options.compatibility,
        tf32=options.tf32,
        build_seconds=round(seconds, 3),
        precision_asked=precision,
        precision_delivered=delivered,
    )
    write_json(engine_metadata_path(out), sidecar.model_dump(mode="json"))
    return sidecar


def add_engine(
    bundle: Bundle,
    *,
    builder: Builder,
    precision: Precision,
    options: BuildOptions | None = None,
) -> tuple[Bundle, str, EngineMetadata]:
    """Build an engine from a bundle's ONNX file and record it in the bundle.

    Returns:
        The bundle with its new manifest, the engine's name in it, and the sidecar.

    Raises:
        BundleError: The bundle has no such ONNX file, or it was changed.
        EngineError: The builder refuses it.
    """
    onnx_path = onnx_of(bundle, precision)
    _, version = load_tensorrt(builder)
    device = PORTABLE if builder == "tensorrt_rtx" else _slug(gpu_of_this_machine().name)
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
        sizes=bundle.manifest.input.sizes,
    )
    bundle = add_file(bundle, name, kind="engine", precision=precision)
    side_name = str(engine_metadata_path(Path(name)))
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
            hint="Export the checkpoint with this precision.",
        )
    return bundle.file(names[0])


def _configure(
    trt: tensorrt_api.Module, config: tensorrt_api.IBuilderConfig, builder: Builder, options: BuildOptions
) -> None:
    """Tell a builder the options."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.level
    # TensorRT allows TF32 unless it is told not to, and an "FP32" engine would then not be one.
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if builder == "tensorrt" and options.compatibility != "none":
        level = options.compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    # TensorRT-RTX alone has this flag: without it, an engine's work cannot be recorded as a CUDA graph.
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if user_allocation is not None:
        config.set_flag(user_allocation)


def _parse(
    trt: tensorrt_api.Module, trt_builder: tensorrt_api.TrtBuilder, onnx_path: Path, log: MessageLog, version: str
) -> tensorrt_api.INetworkDefinition:
    """Return the network of an ONNX file, strongly typed."""
    flags = 0
    if trt.__name__ == "tensorrt" and release_of(version)[0] == LAST_WEAKLY_TYPED:
        # TensorRT 10 types weakly unless told; TensorRT 11 and RTX know nothing else.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt_builder.create_network(flags)
    parser = trt.OnnxParser(network, trt_builder.logger)
    if not parser.parse_from_file(str(onnx_path)):
        error = parser.get_error(0).desc() if parser.num_errors else log.first_error()
        raise EngineError(f"{trt.__name__} {version} cannot read {onnx_path.name} ({str(error).strip()})")
    return network


def batch_profiles(opt_batches: Sequence[int], max_batch: int) -> tuple[BatchProfile, ...]:
    """Return what an engine is tuned for: each profile takes batches from 1, the last one up to the largest."""
    wanted = sorted({min(opt, max_batch) for opt in opt_batches or (LARGEST_OPTIMAL_BATCH,)})
    return tuple(BatchProfile(opt=opt, max=max_batch if opt == wanted[-1] else opt) for opt in wanted)


def _add_profiles(
    trt_builder: tensorrt_api.TrtBuilder,
    config: tensorrt_api.IBuilderConfig,
    network: tensorrt_api.INetworkDefinition,
    profiles: Sequence[BatchProfile],
    sizes: InputShapes | None,
) -> InputShapes:
    """Tell the batches and the sizes of tiles, and return these."""
    tiles = network.get_input(0)
    _, channels, height, width = (int(length) for length in tiles.shape)
    expected = "one size, as no other was told" if sizes is None else str(sizes)
    if sizes is None:
        sizes = InputShapes((height, width))
    if (height, width) != sizes.axes or min(sizes.smallest) < 1:
        raise EngineError(
            "The ONNX file takes other tiles than its bundle says",
            got=f"{height} x {width} px, -1 for any",
            expected=expected,
            hint="Export the bundle again.",
        )
    for batch in profiles:
        profile = trt_builder.create_optimization_profile()
        shapes = ((batch.min, sizes.smallest), (batch.opt, sizes.opt), (batch.max, sizes.largest))
        profile.set_shape(tiles.name, *((count, channels, *size) for count, size in shapes))
        config.add_optimization_profile(profile)
    return sizes


@contextlib.contextmanager
def _shown(trt: tensorrt_api.Module, config: tensorrt_api.IBuilderConfig, label: str) -> Iterator[None]:
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
def _timings(config: tensorrt_api.IBuilderConfig, path: Path | None) -> Iterator[None]:
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


def _layer_formats(trt: tensorrt_api.Module, log: MessageLog, plan: tensorrt_api.IHostMemory) -> dict[str, int] | None:
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


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())

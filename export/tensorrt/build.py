"""Engine builds: TensorRT-RTX without a GPU, or TensorRT 10 and 11 for the GPU of this machine."""

import json
import time
from collections import Counter
from pathlib import Path

from export.bundle.bundle import Bundle, add_file, open_bundle
from export.bundle.description import describe
from export.bundle.engine_metadata import (
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
from export.bundle.manifest import FileKind, Precision
from export.precision.precision_summary import require_precision
from export.tensorrt import tensorrt_api
from export.tensorrt.builder_config import add_profiles, batch_profiles, configure, show_progress, use_timing_cache
from export.tensorrt.tensorrt_api import MessageLog, binding_errors, gpu_of_this_machine, load_tensorrt, release_of
from ifkd.core.errors import EngineError
from ifkd.core.files import atomic_path, sha256_of, write_json
from ifkd.core.input_shapes import InputShapes

DEFAULT_OPTIONS = BuildOptions()
SCREEN_SHAPES = InputShapes((512, 2048), (64, 2560))
"""Sizes that engines of a screen accept, and the one they are optimized for: a part of a band of a wide scene."""
WEAKLY_TYPED_MAJOR = 10
"""Last major version of TensorRT whose networks are weakly typed by default."""


def add_engine(
    bundle: Bundle,
    *,
    builder: Builder,
    precision: Precision,
    options: BuildOptions = DEFAULT_OPTIONS,
    of_screen: bool = False,
) -> tuple[Bundle, str, EngineMetadata]:
    """Add an engine of a bundle's ONNX file, or of that of its screen.

    Return the bundle, the name of the engine file, and its metadata.

    Raises:
        BundleError: The ONNX file is missing, or its digest differs.
        EngineError: The builder rejects the file.
    """
    limits, part = bundle.manifest.input, "screen-" if of_screen else ""
    onnx_path = bundle.file(bundle.find("screen-onnx", precision)[0] if of_screen else bundle.onnx_name(precision))
    _, version = load_tensorrt(builder)
    device = PORTABLE if builder == "tensorrt_rtx" else gpu_of_this_machine().slug
    arithmetic = f"{precision}-tf32" if options.tf32 else precision
    name = f"engines/{part}{device}-{builder.replace('_', '-')}{version}-{arithmetic}.engine"
    metadata = build_engine(
        onnx_path,
        builder=builder,
        precision=precision,
        max_batch=1 if of_screen else limits.max_batch,
        out=bundle.path / name,
        options=options,
        sizes=SCREEN_SHAPES if of_screen else limits.sizes,
    )
    bundle = open_bundle(bundle.path)  # another process may have added files during the build
    metadata_name = str(engine_metadata_path(Path(name)))
    kinds: tuple[FileKind, FileKind] = ("engine", "engine-metadata")
    if of_screen:
        kinds = ("screen-engine", "screen-engine-metadata")
    for file, kind in zip((name, metadata_name), kinds, strict=True):
        bundle = add_file(bundle, file, kind=kind, precision=precision)
    return describe(bundle), name, metadata


def build_engine(
    onnx_path: Path,
    *,
    builder: Builder,
    precision: Precision,
    max_batch: int,
    out: Path,
    options: BuildOptions = DEFAULT_OPTIONS,
    sizes: InputShapes | None = None,
) -> EngineMetadata:
    """Build an engine of an ONNX file and write it with its metadata, a JSON file of the same name.

    The file must have the given precision, and the tile sizes if they are given.

    Raises:
        EngineError: The file has another precision, or the builder rejects it or delivers another precision.
        MissingExtraError: The builder is not installed.
    """
    summary = require_precision(onnx_path, precision)
    trt, version = load_tensorrt(builder)
    gpu = None if builder == "tensorrt_rtx" else gpu_of_this_machine()
    profiles = batch_profiles(options.opt_batch, max_batch)
    log = MessageLog()
    started = time.perf_counter()
    with binding_errors(f"{builder} {version} cannot start", log):
        trt_builder = trt.Builder(log.of(trt))
    network = _parse(trt, trt_builder, onnx_path, log, version)
    config = trt_builder.create_builder_config()
    configure(trt, config, builder, options)
    with binding_errors(f"{builder} {version} refuses the batch or tile sizes of {onnx_path.name}", log):
        sizes = add_profiles(trt_builder, config, network, profiles, sizes)
    cache = options.timing_cache if builder == "tensorrt" else None
    with show_progress(trt, config, f"building {out.name}"), use_timing_cache(config, cache):
        plan = trt_builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{builder} {version} cannot build {onnx_path.name} ({log.first_error()})")
    seconds = time.perf_counter() - started
    layer_formats = _layer_formats(trt, log, plan) if builder == "tensorrt" else None
    delivered = DeliveredPrecision(
        weight_types=dict(summary.weight_types),
        size_ratio=round(memoryview(plan).nbytes / summary.weight_bytes, 3),
        layer_formats=layer_formats,
    )
    require_delivered(delivered, precision, out.name)
    with atomic_path(out) as temporary:
        temporary.write_bytes(memoryview(plan))
    tile_profile = TileProfile(min=sizes.smallest, opt=sizes.opt, max=sizes.largest)
    metadata = EngineMetadata(
        device=PORTABLE if gpu is None else gpu.name,
        compute_capability=None if gpu is None else gpu.capability,
        driver_cuda=None if gpu is None else gpu.driver_cuda,
        builder=builder,
        builder_version=version,
        onnx_file=onnx_path.name,
        onnx_sha256=sha256_of(onnx_path),
        engine_sha256=sha256_of(out),
        engine_bytes=memoryview(plan).nbytes,
        batch=BatchProfile(opt=profiles[-1].opt, max=max_batch),
        batch_profiles=profiles,
        tile_px=sizes.opt,
        tile_profile=tile_profile if sizes.side_range else None,
        **options.model_dump(include={"workspace_mib", "optimization_level", "compatibility", "tf32"}),
        build_seconds=round(seconds, 3),
        requested_precision=precision,
        delivered_precision=delivered,
    )
    write_json(engine_metadata_path(out), metadata.model_dump(mode="json"))
    return metadata


def _parse(
    trt: tensorrt_api.Module, trt_builder: tensorrt_api.TrtBuilder, onnx_path: Path, log: MessageLog, version: str
) -> tensorrt_api.INetworkDefinition:
    """Return the strongly typed network of an ONNX file."""
    flags = 0
    if trt.__name__ == "tensorrt" and release_of(version)[0] == WEAKLY_TYPED_MAJOR:
        # TensorRT 11 and TensorRT-RTX have strongly typed networks only.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt_builder.create_network(flags)
    parser = trt.OnnxParser(network, trt_builder.logger)
    if not parser.parse_from_file(str(onnx_path)):
        error = parser.get_error(0).desc() if parser.num_errors else log.first_error()
        raise EngineError(f"{trt.__name__} {version} cannot read {onnx_path.name} ({str(error).strip()})")
    return network


def _layer_formats(trt: tensorrt_api.Module, log: MessageLog, plan: tensorrt_api.IHostMemory) -> dict[str, int] | None:
    """Return the types and formats of an engine's layers, each with the number of layers; None without a GPU."""
    with binding_errors(f"TensorRT {trt.__version__} cannot load the engine that it built", log):
        engine = trt.Runtime(log.of(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    kinds: Counter[str] = Counter()
    for layer in layers:
        details = layer if isinstance(layer, dict) else {}
        parts = [*(details.get("Inputs") or []), *(details.get("Outputs") or []), details.get("Weights") or {}]
        # TensorRT 11 has two keys for TensorRT 10's Format/Datatype.
        found = [part.get("Datatype") or part.get("Format/Datatype") or part.get("Type") for part in parts]
        kinds.update({str(kind) for kind in found if kind})
    return dict(sorted(kinds.items()))

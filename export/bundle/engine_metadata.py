"""Metadata of an engine file, in a JSON file beside it: target device, build options and delivered precision."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from export.bundle.manifest import Precision
from ifkd.core.config import Schema, read_versioned
from ifkd.core.errors import BundleError, EngineError

Builder = Literal["tensorrt_rtx", "tensorrt"]
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
PORTABLE = "portable"
"""Device of a TensorRT-RTX engine, which is compiled for a GPU when it is loaded."""
LAYER_FORMAT_WORDS = {"fp16": ("Half", "FP16"), "int8": ("Int8", "INT8")}
"""Precision -> words that identify it in the layer formats of the engine inspector."""


class BatchProfile(Schema):
    """Batch sizes of an optimization profile; the engine is optimized for `opt`."""

    min: int = 1
    opt: int
    max: int


class TileProfile(Schema):
    """Tile sizes (height, width) of an optimization profile, pixels; the engine is optimized for `opt`."""

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]


class DeliveredPrecision(Schema):
    """Evidence of the precision of an engine."""

    weight_types: dict[str, int]
    """Type of the weights -> number of layers of the ONNX file; builders of strongly typed networks keep the types."""
    size_ratio: float
    """Size of the engine over the size of the ONNX file's weights; kernels count, for each profile again."""
    size_ratio_without_kernels: float | None = None
    """In files of earlier versions."""
    layer_formats: dict[str, int] | None = None
    """Type or format of inputs, outputs and weights -> number of layers that have it, from the engine inspector; None
    if no GPU could load the engine."""


class BuildOptions(Schema):
    """Options of an engine build."""

    opt_batch: tuple[PositiveInt, ...] = ()
    """Batch sizes to optimize for, one optimization profile each; by default the largest, at most 8."""
    workspace_mib: PositiveInt = 4096
    """Limit of the builder's workspace in device memory."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    """Effort of the search for fast kernels."""
    tf32: bool = False
    """Allow FP32 layers to round their inputs to TF32, which is faster and less accurate."""
    compatibility: Compatibility = "none"
    """GPUs that a TensorRT engine supports besides its own; engines of TensorRT-RTX are portable."""
    timing_cache: Path | None = None
    """TensorRT's timing cache, read and extended; TensorRT-RTX has none."""


class EngineMetadata(Schema):
    """Metadata of an engine file."""

    schema_version: Literal[2] = 2
    device: str
    """`portable`, or the name of the GPU the engine was built on."""
    compute_capability: str | None
    driver_cuda: str | None = None
    """Compute capability of that GPU, such as 9.0, and the latest CUDA version of its driver, such as 13.0."""
    builder: Builder
    builder_version: str
    onnx_file: str
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    batch: BatchProfile
    """All batch sizes that the engine accepts."""
    batch_profiles: tuple[BatchProfile, ...] = ()
    """Optimization profiles, by their largest batch; empty if `batch` is the only one."""
    tile_px: tuple[int, int]
    """(height, width)."""
    tile_profile: TileProfile | None = None
    """Tile sizes, if the engine accepts several."""
    workspace_mib: int
    optimization_level: int = 3
    compatibility: Compatibility = "none"
    tf32: bool
    build_seconds: float
    requested_precision: Precision
    delivered_precision: DeliveredPrecision


def engine_metadata_path(path: Path) -> Path:
    """Return the path of the metadata of an engine file."""
    return path.with_suffix(".json")


def read_engine_metadata(path: Path) -> EngineMetadata:
    """Return the metadata of an engine.

    Raises:
        BundleError: The file cannot be read or is invalid.
    """
    hint = "Build the engine again with `ifkd engine`."
    return read_versioned(path, EngineMetadata, hint=hint, error_type=BundleError)


def require_delivered(delivered: DeliveredPrecision, precision: Precision, name: str) -> None:
    """Raise an EngineError if the engine's layers are known, and none has the precision."""
    words, formats = LAYER_FORMAT_WORDS.get(precision), delivered.layer_formats
    if formats and words and not any(word in kind for kind in formats for word in words):
        raise EngineError(
            f"No layer of the engine {name} computes in {precision}",
            got=", ".join(f"{count} {kind}" for kind, count in formats.items()),
            expected=" or ".join(words),
            hint="Use another version of the builder, or another precision.",
        )

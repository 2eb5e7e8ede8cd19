"""What is known of an engine file without opening it: its sidecar, and what a builder was asked and delivered."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError

from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.errors import BundleError, EngineError

Builder = Literal["tensorrt_rtx", "tensorrt"]
PORTABLE = "portable"
"""The device of an engine that is not tied to one: TensorRT-RTX finishes it on the GPU that runs it."""
DEFAULT_WORKSPACE_MIB = 4096
WIDENED = ("fp16", "int8")
"""Precisions whose weights a builder could widen to FP32, unseen but for the engine's size."""
LARGEST_ENGINE_TO_WEIGHTS = 1.5
"""Largest engine, less what kernels may take, over the ONNX file's weights; weights of twice the width give about 2."""
KERNEL_BYTES = {"fp16": 50_000, "int8": 200_000}
"""Precision -> what a layer's kernels may take in an engine. Seen in TensorRT-RTX 1.7: 35 kB and 120 to 150 kB."""
FIXED_BYTES = 4_000_000
"""What the rest of an engine may take."""
LAYER_WORDS = {"fp16": ("Half", "FP16"), "int8": ("Int8", "INT8")}
"""Precision -> words of which the inspector's layer formats show one."""


class BatchProfile(Schema):
    """Batch sizes an engine takes, and the one it was tuned for."""

    min: int = 1
    opt: int
    max: int


class TileProfile(Schema):
    """Tiles (height, width), pixels, that an engine takes, and the one it was tuned for."""

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]


class DeliveredPrecision(Schema):
    """What shows the precision of an engine."""

    weight_types: dict[str, int]
    """Type of the weights -> convolutions of the ONNX file; networks are strongly typed, so no builder changes it."""
    engine_to_weights: float
    """Size of the engine over size of the ONNX file's weights; near 1 when the weights kept their type."""
    weights_to_weights: float | None = None
    """The same, less what kernels may take; an engine for which it is far above 1 has widened weights."""
    layers: dict[str, int] | None = None
    """Output format -> number of layers, as the engine inspector tells; None where no GPU could load the engine."""


class BuildOptions(Schema):
    """What the user of a builder chooses."""

    opt_batch: tuple[PositiveInt, ...] = ()
    """Batches to tune for, an optimization profile each; by default the largest, at most 8."""
    workspace_mib: PositiveInt = DEFAULT_WORKSPACE_MIB
    """Device memory the builder may plan with."""
    level: Annotated[int, Field(ge=0, le=5)] = 3
    """How long the builder searches for fast kernels, 0 to 5."""
    tf32: bool = False
    """Let FP32 layers round their factors to TF32 on GPUs that have it: faster, and no longer FP32."""
    compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """GPUs besides this one that a TensorRT engine shall run on; TensorRT-RTX has its own rule."""
    timing_cache: Path | None = None
    """TensorRT's timings are read from here and added to; TensorRT-RTX keeps none."""


class EngineMetadata(Schema):
    """What is known of an engine file without opening it."""

    schema_version: Literal[1] = 1
    device: str
    """`portable`, or the name of the GPU it was built on."""
    compute_capability: str | None
    """Of that GPU, such as 9.0."""
    driver_cuda: str | None = None
    """The newest CUDA that its driver could run, such as 13.0."""
    builder: Builder
    builder_version: str
    onnx: str
    """The ONNX file it was built from."""
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    batch: BatchProfile
    """All batches it takes."""
    profiles: tuple[BatchProfile, ...] = ()
    """Its optimization profiles, by their largest batch; none stands for `batch` alone."""
    tile_px: tuple[int, int]
    """(height, width)."""
    tiles: TileProfile | None = None
    """Where it takes tiles of several sizes."""
    workspace_mib: int
    level: int = 3
    """The builder's optimization level."""
    compatibility: str = "none"
    """GPUs besides the one it was built on that it runs on."""
    tf32: bool
    """Whether FP32 convolutions may round their inputs to TF32."""
    build_seconds: float
    precision_asked: Precision
    precision_delivered: DeliveredPrecision


def engine_metadata_path(path: Path) -> Path:
    """Return where the sidecar of an engine file lies."""
    return path.with_suffix(".json")


def read_engine_metadata(path: Path) -> EngineMetadata:
    """Read a sidecar.

    Raises:
        BundleError: It does not hold.
    """
    try:
        return EngineMetadata.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{path} is not an engine's sidecar ({error})", hint="Build the engine again.") from error


def require_delivered(delivered: DeliveredPrecision, precision: Precision, name: str) -> None:
    """Refuse an engine that is less than was asked for, by its size and, where they are known, its layers.

    Raises:
        EngineError: It is far larger than its weights, so they were widened; or no layer has the precision.
    """
    ratio = delivered.weights_to_weights
    if precision in WIDENED and ratio is not None and ratio > LARGEST_ENGINE_TO_WEIGHTS:
        raise EngineError(
            f"{name} would not be {precision}: its weights were widened",
            got=f"{ratio:g} times the size of the ONNX file's weights, kernels left out",
            expected=f"at most {LARGEST_ENGINE_TO_WEIGHTS:g}",
            hint="Use another version of the builder, or another precision.",
        )
    words = LAYER_WORDS.get(precision)
    if delivered.layers and words and not any(word in kind for kind in delivered.layers for word in words):
        raise EngineError(
            f"{name} would not be {precision}: no layer of it computes so",
            got=", ".join(f"{count} {kind}" for kind, count in delivered.layers.items()),
            expected=" or ".join(words),
            hint="Use another version of the builder, or another precision.",
        )

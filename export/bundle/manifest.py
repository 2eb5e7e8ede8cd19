"""The schema of model.json, the manifest of a bundle."""

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from ifkd.core.config import Schema
from ifkd.core.input_shapes import InputShapes
from ifkd.core.postprocess import PostprocessConfig
from ifkd.imagery.contrast import Imagery

SCHEMA_VERSION: Literal[1] = 1

Precision = Literal["fp32", "fp16", "int8", "int8-cpu"]
FileKind = Literal["weights", "onnx", "engine", "config", "check", "sidecar"]


class InputSpec(Schema):
    """What the engines take: uint8 RGB tiles, [batch, 3, height, width]."""

    name: str = "tiles"
    tile_px: tuple[PositiveInt, PositiveInt]
    """Tile (height, width), pixels after scaling."""
    tile_sides_px: tuple[PositiveInt, PositiveInt] | None = None
    """Least and largest height and width, where files take tiles of several sizes; None where of `tile_px` alone."""
    max_batch: PositiveInt
    scale: PositiveFloat = 1.0
    """Factor from the scene's pixels to the engine's."""
    imagery: Imagery = Imagery()
    """How the network's images became uint8 RGB; scenes are read alike."""

    @property
    def sizes(self) -> InputShapes:
        """The tiles that the engines take."""
        return InputShapes(self.tile_px, self.tile_sides_px)


class OutputSpec(Schema):
    """What the engines answer: `boxes` [batch, k, 4], `scores` [batch, k], `labels` [batch, k]."""

    candidates: PositiveInt
    """k."""


class Defaults(Schema):
    """Settings of detection when the user gives none."""

    selection: PostprocessConfig
    """Test-time settings, under which metrics are measured."""
    scene_score: float = 0.3
    """Least score of an object on the map."""
    overlap_px: int
    """Overlap of neighboring tiles, pixels after scaling."""
    gsd_m: PositiveFloat | None = None
    """Ground sample distance of the training images, meters."""


class FileRecord(Schema):
    """One file of the bundle."""

    sha256: str
    bytes: int
    kind: FileKind
    precision: Precision | None = None


class TensorParity(Schema):
    """Raw outputs of an ONNX file against the torch network of the same weights, matched box by box."""

    tiles: int
    """Images compared."""
    candidates: int
    """Candidates above the compared score."""
    matched: float
    """Share with a counterpart of the same label and an IoU of at least 0.99."""
    max_score_difference: float
    max_box_difference_px: float
    tolerance: dict[str, float]
    """Limits on the figures above."""
    passed: bool


class CalibrationRecord(Schema):
    """What the ranges of an INT8 file's activations were found on."""

    source: str
    """In words."""
    image_ids: tuple[int, ...]
    """Of the training file; one tile of each image."""
    tiles_sha256: str
    """Digest of the tiles' pixels, uint8 [tiles, 3, height, width]."""
    method: Literal["minmax", "entropy", "percentile"]
    percentile: float | None
    """Share of the values that a range holds, percent; None for the other methods."""


class QuantizationStep(Schema):
    """One step of the search for layers to leave in float."""

    float_layers: int
    """Layers in float besides the head's last ones."""
    mean_ap: float
    map_loss: float
    """mAP of the FP32 file less that of this step."""


class Speed(Schema):
    """What a file took for one tile on the CPU that exported it, milliseconds."""

    median_ms: float
    rounds_ms: tuple[float, ...]
    """Median of each turn; the files that are compared took turns."""


class Speedup(Schema):
    """How many times as fast as another file an INT8 file is, round by round."""

    median: float
    least: float
    most: float


class QuantizationDecision(Schema):
    """Whether an INT8 file is worth it against the file one would take otherwise."""

    against: Precision
    map_loss: float
    """mAP of that file less that of the INT8 file."""
    per_class_loss: dict[str, float]
    """Loss of AP by class."""
    latency: dict[Precision, Speed] = {}
    """Of this file and of those in float, by ONNX Runtime on the CPU that exported; empty for a file that is meant
    for a GPU."""
    threads: int | None = None
    speed_up: dict[Precision, Speedup] = {}
    """By the file it is compared with."""
    worth_it: bool | None
    """None where accuracy holds and speed is unmeasured."""
    reason: str


class QuantizationRecord(Schema):
    """How an INT8 file came to be, and what it costs."""

    calibration: CalibrationRecord
    layers: int
    """Convolutions and fully connected layers of the network."""
    float_layers: tuple[str, ...]
    """Layers that the search left in float, the most sensitive first."""
    ranking: dict[str, float]
    """Layer -> error it makes alone in the head's values; empty when no search was needed."""
    curve: tuple[QuantizationStep, ...]
    """mAP on the validation split, step by step."""
    max_map_loss: float
    map_loss: float
    per_class_loss: dict[str, float]
    """Loss of AP by class."""
    noise: float
    """Error of the head's values as a share of their spread."""
    passed: bool
    verdict: QuantizationDecision | None = None
    """Against FP16 where the bundle has it, else against FP32."""


class Manifest(Schema):
    """model.json: what a bundle is, what is in it and how it came to be."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601."""
    producer: str
    """Program and version."""
    provenance: dict[str, Any]
    """How the weights were made: recipe, data, method, teacher, seed, versions, and notes a reader must see."""
    detector: dict[str, Any]
    """The detector's configuration, as in the recipe."""
    input: InputSpec
    outputs: OutputSpec
    classes: tuple[str, ...]
    """Class names by label."""
    category_ids: tuple[int, ...]
    """The training file's category id by label; COCO results are written with it."""
    defaults: Defaults
    files: dict[str, FileRecord]
    """By path inside the bundle."""
    checks: dict[str, TensorParity] = {}
    """By ONNX path inside the bundle; FP32 and FP16."""
    quantization: dict[str, QuantizationRecord] = {}
    """By ONNX path inside the bundle; INT8."""

"""The manifest of a bundle, model.json."""

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from export.bundle.screen_record import ScreenRecord
from ifkd.core.config import Schema
from ifkd.core.input_shapes import InputShapes
from ifkd.core.postprocess import PostprocessConfig
from ifkd.imagery.contrast import ImageryOptions

Precision = Literal["fp32", "fp16", "int8", "int8-cpu"]
FileKind = Literal[
    "weights",
    "onnx",
    "yolo-onnx",
    "engine",
    "engine-metadata",
    "screen-onnx",
    "screen-engine",
    "screen-engine-metadata",
    "config",
    "check",
    "description",
]


class InputSpec(Schema):
    """Input of the engines: uint8 RGB tiles, [batch, 3, height, width]."""

    name: str = "tiles"
    tile_px: tuple[PositiveInt, PositiveInt]
    """Tile (height, width), pixels after scaling."""
    tile_sides_px: tuple[PositiveInt, PositiveInt] | None = None
    """Minimum and maximum height and width of files for tiles of several sizes; None if only `tile_px` is accepted."""
    max_batch: PositiveInt
    scale: PositiveFloat = 1.0
    """Factor from the scene's pixels to the engine's."""
    imagery: ImageryOptions = ImageryOptions()
    """Conversion of the training images to uint8 RGB; scenes are converted in the same way."""

    @property
    def sizes(self) -> InputShapes:
        """Accepted tile sizes."""
        return InputShapes(self.tile_px, self.tile_sides_px)


class OutputSpec(Schema):
    """Output of the engines: `boxes` [batch, candidates, 4], `scores` and `labels` [batch, candidates]."""

    candidates: PositiveInt
    oriented: bool = False
    """A fourth output `oriented` [batch, candidates, 5]: center x, center y, length, width, angle."""

    @property
    def box_form(self) -> str:
        """The form of the boxes in words: `oriented` or `horizontal`."""
        return "oriented" if self.oriented else "horizontal"


class Defaults(Schema):
    """Default settings of detection."""

    postprocess: PostprocessConfig
    """Settings under which metrics are measured."""
    scene_score_threshold: float = 0.3
    class_agnostic_iou: float = 0.8
    """Of boxes of different classes in a scene with an IoU above this, only the best is kept; 1 keeps all."""
    overlap_px: int
    """Overlap of neighboring tiles, pixels after scaling."""
    gsd_m: PositiveFloat | None = None
    """Ground sampling distance of the training images, meters."""


class CurvePoint(Schema):
    """Precision, recall and F1 of the detections above a score threshold, at an IoU of 0.5, over all classes.

    With `scene_objects_per_km2` in the recipe, precision and F1 are those expected in scenes of this density.
    """

    score_threshold: float
    precision: float
    recall: float
    f1: float


class OperatingPoint(Schema):
    """Thresholds chosen for scenes, those of `defaults`, and the data on which they were chosen."""

    source: str
    """Images of the choice, or the reason why there was none."""
    score_threshold: float
    class_agnostic_iou: float
    f1_standard_error: float | None = None
    """Of the highest F1; the score threshold is the highest one whose F1 is within it. None if nothing was chosen."""
    curve: tuple[CurvePoint, ...] = ()
    """By descending score threshold, at the chosen class-agnostic IoU; empty if nothing was chosen."""


class TrainingImagery(Schema):
    """Origin of the training images, as the recipe states it."""

    sensor: str | None = None
    license: str | None = None


class FileRecord(Schema):
    """One file of the bundle."""

    sha256: str
    bytes: int
    kind: FileKind
    precision: Precision | None = None


class TensorParity(Schema):
    """Differences between the compared candidates of an ONNX file and of a reference with the same weights."""

    reference: str = "torch"
    """The torch model, or the name of the FP32 file."""

    tiles: int
    candidates: int
    """Number of candidates compared."""
    matched_fraction: float
    """Fraction of candidates with a counterpart of the same label and an IoU of at least 0.99."""
    max_score_difference: float
    max_box_difference_px: float
    tolerance: dict[str, float]
    """Limits of the values above."""
    passed: bool
    onnx_sha256: str | None = None
    """Digest of the compared ONNX file; None in bundles of earlier versions."""

    @property
    def in_words(self) -> str:
        """The differences as text."""
        return (
            f"{self.matched_fraction:.2%} of {self.candidates} candidates matched, "
            f"scores within {self.max_score_difference:.1g}, boxes within {self.max_box_difference_px:.1g} px"
        )


class CalibrationRecord(Schema):
    """Data and method from which the activation ranges of an INT8 file were computed."""

    source: str
    image_ids: tuple[int, ...]
    """Ids in the training file."""
    tiles_sha256: str
    """Digest of the tiles' pixels, uint8 [tiles, 3, height, width]."""
    method: Literal["minmax", "entropy", "percentile"]
    percentile: float | None
    """Percentage of the values inside a range; None for other methods."""


class QuantizationStep(Schema):
    """One step of the search for layers to keep in float, without the last layers of the head."""

    float_layers: int
    mean_ap: float | None
    map_loss: float | None
    """mAP of the FP32 file minus mAP of this step; None without labeled objects, as `mean_ap`."""


class TileLatency(Schema):
    """Latency of an ONNX file for one tile on the CPU of the exporting machine, milliseconds."""

    median_ms: float
    rounds_ms: tuple[float, ...]
    """Median of each round; in a round, the compared files run in turn."""


class Int8Speedup(Schema):
    """Speedup of an INT8 file over another file, from the latencies of each round."""

    median: float
    min: float
    max: float


class QuantizationDecision(Schema):
    """Comparison of an INT8 file with the floating-point file that would be used otherwise, the baseline."""

    baseline: Precision
    map_loss: float | None
    """mAP of the baseline minus mAP of the INT8 file; None without labeled objects."""
    per_class_loss: dict[str, float]
    latency: dict[Precision, TileLatency] = {}
    """Latency of this file and of the floating-point files; empty for a file that runs on a GPU."""
    threads: int | None = None
    """CPU threads of the latency measurement."""
    speedup: dict[Precision, Int8Speedup] = {}
    recommended: bool | None
    """Whether to use the INT8 file; None if its accuracy or its latency is unknown and nothing else is against it."""
    reason: str

    @property
    def in_words(self) -> str:
        """The decision, such as `recommended over fp16`."""
        words = {True: "recommended", False: "not recommended", None: "undecided"}
        return f"{words[self.recommended]} over {self.baseline}"


class QuantizationRecord(Schema):
    """Settings and accuracy of an INT8 file."""

    calibration: CalibrationRecord
    layers: int
    float_layers: tuple[str, ...]
    """Names of the layers that the search kept in float, the most sensitive first."""
    sensitivity: dict[str, float]
    """Layer -> error of the head's outputs if only this layer is INT8; empty if no search was needed."""
    search: tuple[QuantizationStep, ...]
    """mAP on the validation split, step by step."""
    max_map_loss: float
    map_loss: float | None
    """mAP of the FP32 file minus mAP of this file; None without labeled objects."""
    per_class_loss: dict[str, float]
    head_error: float
    """RMS error of the head's outputs, relative to their standard deviation."""
    passed: bool
    decision: QuantizationDecision | None = None
    onnx_sha256: str | None = None
    """Digest of the measured INT8 file; None in bundles of earlier versions."""


class ReportedMetric(Schema):
    """A metric of a report, as the metadata of a model card state it."""

    data: str
    """Labeled images or scene, with their number of objects."""
    kind: str
    """`map`, `map_50` or `map_75`, as torchmetrics names them, or `precision`, `recall` or `f1`."""
    name: str
    """The metric with its conditions, for readers."""
    value: float


class ReportedTable(Schema):
    """A table of a report, as text."""

    caption: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Columns of numbers."""
    rows: tuple[tuple[str, ...], ...]


class ReportSummary(Schema):
    """The results of a report that are of a bundle's files, for its model card."""

    title: str
    created: str
    """UTC, ISO 8601."""
    producer: str
    report_sha256: str
    """Digest of report.json."""
    measured: dict[str, str]
    """SHA-256 of the measured files by name, to find files that were replaced after the report."""
    metrics: tuple[ReportedMetric, ...]
    tables: tuple[ReportedTable, ...]
    conditions: tuple[str, ...]
    """Conditions of the figures."""
    limits: tuple[str, ...]
    """Failures and warnings of the report, and its notes."""


class Manifest(Schema):
    """Description, files and provenance of a bundle."""

    schema_version: Literal[2] = 2
    name: str
    created: str
    """UTC, ISO 8601."""
    producer: str
    """Program and version."""
    provenance: dict[str, Any]
    """Origin of the weights: recipe, data, method, teacher, seed, versions and notes."""
    detector: dict[str, Any]
    """Detector options of the recipe."""
    input: InputSpec
    outputs: OutputSpec
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Class names and COCO category ids of the training file, by label."""
    defaults: Defaults
    operating_point: OperatingPoint | None = None
    training_imagery: TrainingImagery = TrainingImagery()
    files: dict[str, FileRecord]
    """Files by path inside the bundle."""
    checks: dict[str, TensorParity] = {}
    quantization: dict[str, QuantizationRecord] = {}
    """Results by ONNX file: `checks` for FP32, FP16 and the layout of a YOLO, `quantization` for INT8."""
    screen: ScreenRecord | None = None
    """The network that finds the tiles worth searching, if the bundle has one."""
    report: ReportSummary | None = None
    """Results of `ifkd report --model-card`; None before."""

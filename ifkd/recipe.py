"""A recipe: everything that one detector's way from data to bundle depends on. configs/ holds complete ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ifkd.config import Schema
from ifkd.data.stretch import Imagery
from ifkd.postprocess import Selection

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the range must not fall")
    return bounds


def _even_rows(grid: tuple[int, int]) -> tuple[int, int]:
    if grid[0] % 2:
        raise ValueError("the grid needs an even number of rows, so that one of them is frequency 0")
    return grid


Family = Literal["retinanet", "faster_rcnn"]
Level = Literal["p2", "p3", "p4", "p5", "p6", "p7"]
LEVELS: dict[Family, tuple[Level, ...]] = {
    "retinanet": ("p3", "p4", "p5", "p6", "p7"),
    "faster_rcnn": ("p2", "p3", "p4", "p5", "p6"),
}
"""Each family's pyramid, finest level first; level pN has a stride of 2^N pixels."""
LevelChoice = tuple[Level, ...] | Literal["all", "two_finest", "three_coarsest"]
"""Some levels of the detector's pyramid, by name or by place, or all it has."""


def chosen_levels(choice: LevelChoice, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Return those of a detector's `levels` that are chosen."""
    match choice:
        case "all":
            return levels
        case "two_finest":
            return levels[:2]
        case "three_coarsest":
            return levels[-3:]
        case _:
            return tuple(level for level in levels if level in choice)


class Augmentation(Schema):
    """Random changes of a training image; aerial images have no up."""

    flip: bool = True
    """Mirror left-right and top-bottom, each with probability 0.5."""
    quarter_turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees."""
    scale_jitter: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)] = (1.0, 1.0)
    """Range of a random zoom around the recipe's scale."""
    photometric: Share = 0.0
    """Strength of random brightness, contrast and saturation; 0 leaves colours alone."""


class Data(Schema):
    """The images of a recipe, and how they are brought to a detector."""

    root: Path | None = None
    """Folder that the paths below are relative to; the one line to change on another machine."""
    train: Path
    """COCO json of the training split."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | Path
    """COCO json on which checkpoints are chosen, or the share of training images to hold out for it by place."""
    test: Path
    """COCO json on which results are reported."""
    images: Path | None = None
    """Image folder of all splits; by default `images` beside each json."""
    merge_classes: dict[str, str] = {}
    """Class name -> the class its objects are counted as."""
    scale: PositiveFloat = 1.0
    """Factor by which images are resized before anything else; scenes are scaled alike."""
    tile_px: PositiveInt = 512
    """Side of training crops and of the exported tiles, pixels after scaling; a multiple of 32."""
    imagery: Imagery = Imagery()
    """Which bands are seen and how values become uint8; scenes are read alike."""
    augmentation: Augmentation = Augmentation()
    memory_mb: Annotated[int, Field(ge=0)] = 512
    """Memory for keeping scaled images between epochs, megabytes for each loading process."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load images; 0 loads in the training process."""

    @model_validator(mode="after")
    def _tile_fits(self) -> "Data":
        if self.tile_px % 32:
            raise ValueError(f"tile_px must be a multiple of 32, got {self.tile_px}")
        if abs(self.tile_px / self.scale - round(self.tile_px / self.scale)) > 1e-6:
            raise ValueError(f"tile_px / scale must be whole pixels, got {self.tile_px} / {self.scale}")
        return self


class Detector(Schema):
    """The shape of a detector."""

    family: Family = "retinanet"
    backbone: Literal["resnet50", "resnet18", "mobilenet_v2"]
    channels: PositiveInt = 256
    """Width of the pyramid and of the head."""
    head_init: Literal["normal", "kaiming"] = "normal"
    """Initial weights of the head's towers: normal with deviation 0.01 suits a width of 256; a narrower head's
    signal would all but vanish there, and `kaiming` keeps it."""
    backbone_weights: str = "none"
    """`imagenet`, `none`, or the path of a torchvision state dict."""
    weights: str = "none"
    """Of the whole detector: `coco` (torchvision's, with a ResNet-50), `none`, or the path of a torchvision detector's
    state dict. What fits is laid over the backbone's; what does not is told and stays fresh."""
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0
    """Backbone stages, from the stem on, that do not learn (1 is stem and first stage)."""
    norm: Literal["train", "frozen"] = "train"
    """Batch-norm statistics: learned, or those of the loaded weights."""
    box_head_width: PositiveInt = 1024
    """Faster R-CNN: width of the two fully connected layers of its box head."""
    proposals: PositiveInt = 1000
    """Faster R-CNN: proposals kept for each image when it detects, and taken from each level before suppression."""
    sampled_rois: PositiveInt = 512
    """Faster R-CNN: the most regions of an image that its second stage learns from, a quarter of them objects."""

    @model_validator(mode="after")
    def _weights_exist(self) -> "Detector":
        if self.weights == "coco" and self.backbone != "resnet50":
            raise ValueError(f'weights = "coco" exist for resnet50 alone, and the backbone is {self.backbone}')
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        """The names of the pyramid's levels, finest first."""
        return LEVELS[self.family]


SCHEDULES: dict[str, dict[str, Any]] = {
    "1x": {"schedule": "step", "epochs": 12, "steps": (8, 11)},
    "paper_100e": {"schedule": "step", "epochs": 100, "steps": (80, 90)},
}
"""Names that a recipe may give as `schedule`, and what they stand for; a value given beside the name wins."""


class Training(Schema):
    """One training run."""

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 8
    """Images a step, over all processes and accumulated parts together, so that a recipe means the same anywhere."""
    accumulation: PositiveInt = 1
    """Parts in which each process takes its share of a batch, for memory; gradients are those of the mean loss."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    """At `learning_rate_batch` images a step; scaled linearly to the actual batch."""
    learning_rate_batch: PositiveInt = 16
    momentum: Share = 0.9
    """SGD's momentum."""
    weight_decay: NonNegative = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    """How the rate falls; or `1x` (12 epochs, steps after 8 and 11) or `paper_100e` (100 epochs, steps after 80 and
    90) for all three."""
    steps: tuple[PositiveInt, ...] = (8, 11)
    """Epochs after which the step schedule divides the rate by ten."""
    warmup_iters: Annotated[int, Field(ge=0)] = 500
    warmup_factor: PositiveFloat = 0.001
    """Share of the rate at iteration 0."""
    amp: Literal["none", "auto", "bf16", "fp16"] = "none"
    """Arithmetic of the networks' forward and backward; losses stay in float32. `auto` takes bf16 where the
    processor computes in it, and float32 elsewhere; fp16 is for CUDA."""
    grad_clip: PositiveFloat | None = None
    """Largest norm of all gradients together."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Memory of a running mean of the weights, which is then what is validated and kept; for example 0.9998."""
    channels_last: bool = True
    """Keep images and weights with the channels innermost, which is faster on most processors."""
    compile: bool = False
    """Compile the detector's forward by torch.compile."""
    sync_norm: bool = False
    """Batch-norm statistics over all processes; for GPUs."""
    validate_every: PositiveInt = 1
    """Epochs between validations; the last epoch is always validated."""
    patience: PositiveInt | None = None
    """Validations without a better mAP after which the run ends."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    save_minutes: NonNegative = 10.0
    """Time between states for resuming within an epoch; one is saved after every epoch as well."""

    @model_validator(mode="before")
    @classmethod
    def _named_schedule(cls, values: Any) -> Any:
        """Put what a named schedule stands for in its place."""
        name = values.get("schedule") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in SCHEDULES:
            return values
        named = SCHEDULES[name]
        return {**named, **values, "schedule": named["schedule"]}

    @field_validator("schedule", mode="before")
    @classmethod
    def _known_schedule(cls, value: Any) -> Any:
        if value not in ("step", "cosine"):
            raise ValueError(f"must be step, cosine, {' or '.join(SCHEDULES)}")
        return value


class Role(Schema):
    """A detector and how it is trained alone."""

    detector: Detector
    training: Training


class Adapter(Schema):
    """The convolution that carries student features to the teacher's space (section 3.1, phi)."""

    kernel: Literal[1, 3] = 3
    shared: bool = False
    """One convolution for all levels instead of one each."""
    bias: bool = True


class Disturbance(Schema):
    """EDE: MobileSAM's knowledge added to the teacher's (section 3.1)."""

    enabled: bool = True
    weight: NonNegative = 1.0
    """Lambda of eq. 12."""
    source: Literal["embedding", "mask"] = "embedding"
    """What of MobileSAM: its image embedding, or the mask it draws without a prompt."""
    form: Literal["add", "gate"] = "add"
    """Added to the target, or multiplied with the features and followed by two convolutions that learn."""
    residual: bool = True
    """Of a gate: add its input to its result, as the released one-stage code does."""
    levels: LevelChoice = "all"
    interp: Literal["bilinear", "area"] = "bilinear"
    center: bool = False
    """Subtract 0.5, the mean of a sigmoid."""
    order: Literal["add_to_target", "ede_then_fdr"] = "add_to_target"
    input_px: PositiveInt | Literal["native"] = 1024
    """Long side of the encoder's input, a multiple of 16; `native` takes the training images as they are."""
    weights: str = "mobile_sam"
    """`mobile_sam` (the published checkpoint, at its place in the cache), `random` (seeded), or a path."""
    fall_back_to_random: bool = False
    """When the published checkpoint is not installed, run with `random` and say so, instead of refusing."""
    cache: bool = False
    """Keep MobileSAM's answers on disk, by the digest of the pixels they belong to; needs whole images as tiles."""


class Frequency(Schema):
    """FDR: the teacher's low frequencies are kept where it is confident (section 3.2)."""

    enabled: bool = True
    r: Share = 0.1
    """Half-side of the low-pass window as a share of the half map."""
    r_range: Annotated[tuple[NonNegative, NonNegative], AfterValidator(_rising)] | None = None
    """When set, r is drawn uniformly for each call."""
    p: Share = 0.5
    """Probability of applying the mask in a training step."""
    levels: LevelChoice = "all"
    apply_to: Literal["teacher", "both"] = "teacher"
    filter: Literal["grid", "channel", "none"] = "grid"
    grid: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_even_rows)] = (16, 9)
    """Rows and columns of the base grid; the rows are even in number."""
    filter_complex: bool = False
    filter_init: Literal["ones", "gfnet"] = "ones"
    filter_norm: Literal["rms", "none"] = "rms"
    filter_trainable: bool = True


class Similarity(Schema):
    """HSM: locations are weighted by the hyperbolic distance of student and teacher (section 3.3)."""

    enabled: bool = True
    map: Literal["expmap0", "project", "raw"] = "expmap0"
    scale: Literal["auto", "inv_sqrt_channels", "none"] = "auto"
    target_radius: PositiveFloat = 1.0
    curvature: PositiveFloat = 1.0
    clip: PositiveFloat = 2.3
    formula: Literal["asinh", "mobius"] = "asinh"
    detach: bool = True


class HeadLoss(Schema):
    """L_head: the student's class logits follow the teacher's (eq. 13)."""

    enabled: bool = True
    kind: Literal["bce", "kl"] = "bce"
    frcnn_head: Literal["rpn", "roi", "both"] = "rpn"
    """Whose logits, in Faster R-CNN: the dense objectness of its first stage, the classes that its second stage
    gives the student's sampled regions (always a KL divergence, without HSM), or both."""


Preset = Literal["ifkd", "ifkd_paper_literal", "ifkd_released"]
PRESETS: dict[Preset, dict[str, Any]] = {
    "ifkd": {},
    "ifkd_paper_literal": {
        "warmup_iters": 0,
        "adapter": {"shared": True},
        "fdr": {"filter_norm": "none", "r_range": (0.0, 1.0), "p": 1.0},
    },
    "ifkd_released": {
        "alpha": 1e-4,
        "beta": 1e-3,
        "warmup_iters": 0,
        "adapter": {"shared": True},
        "ede": {"source": "mask", "form": "gate", "levels": "three_coarsest"},
        "fdr": {
            "apply_to": "both",
            "levels": "two_finest",
            "filter": "channel",
            "filter_complex": True,
            "filter_init": "gfnet",
            "filter_norm": "none",
        },
    },
}
"""Values that a preset's name stands for; docs/method.md says where they come from."""


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` over it, table by table."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = _overlaid(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


class Ifkd(Schema):
    """IFKD's options, named as in docs/method.md."""

    name: Literal["ifkd"] = "ifkd"
    preset: Preset = "ifkd"
    """Where options that are not given take their values from: ours, the paper to the letter, or the released code."""
    alpha: NonNegative = 0.06
    beta: NonNegative = 0.5
    warmup_iters: Annotated[int, Field(ge=0)] = 500
    adapter: Adapter = Adapter()
    norm: Literal["mask", "image", "hw"] = "mask"
    channel_reduction: Literal["sum", "mean"] = "sum"
    with_at: bool = False
    """Add attention transfer, as every row of the paper's Table 4 has it."""
    feature_scale: Literal["auto", "none"] = "auto"
    reference_rms: PositiveFloat = 0.3
    """Root mean square to which `auto` brings the teacher's features, per level."""
    ede: Disturbance = Disturbance()
    fdr: Frequency = Frequency()
    hsm: Similarity = Similarity()
    head: HeadLoss = HeadLoss()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        return _overlaid(PRESETS[preset], values) if preset in PRESETS else values


class NoMethod(Schema):
    """Plain training."""

    name: Literal["none"] = "none"


class Distillation(Schema):
    """A distillation run: the student learns from the teacher by `method`."""

    training: Training
    method: Annotated[Ifkd | NoMethod, Field(discriminator="name")]
    min_teacher_map: Share = 0.05
    """A teacher below this on the validation split is refused before step 1."""
    cache_teacher: bool = False
    """Keep the teacher's pyramid, logits and box deltas on disk, as `ede.cache` keeps MobileSAM's answers."""
    rebuild_cache: bool = False
    """Make caches of another teacher, encoder, data set or preprocessing anew, instead of refusing them."""


class Calibration(Schema):
    """How the INT8 files are made; other precisions need none of it."""

    tiles: PositiveInt = 128
    """Tiles of training images on which the ranges of activations are found, one an image."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    """Share of the values that a range holds, percent; for `percentile`."""
    float_head: bool = True
    """Leave the head's last layers, which give scores and boxes, in float."""
    reduce_range: bool = True
    """7-bit weights in `int8-cpu`: processors without VNNI saturate when they add products of 8 bits."""
    max_map_loss: Share = 0.005
    """Largest loss of mAP on the validation split; layers stay in float until it holds."""


class Export(Schema):
    """What the bundle is made of."""

    precisions: tuple[Literal["fp32", "fp16", "int8", "int8-cpu"], ...] = ("fp32", "fp16")
    calibration: Calibration = Calibration()
    candidates_per_level: PositiveInt = 1000
    """Top-k of each pyramid level; TensorRT allows at most 3840."""
    max_batch: PositiveInt = 16
    overlap_px: PositiveInt = 64
    """Overlap of neighbouring tiles in scenes, pixels after scaling; larger than most objects."""
    scene_score: Share = 0.3
    """Least score of an object on the map, when the user of the bundle names none."""
    gsd_m: PositiveFloat | None = None
    """Ground sample distance of the training images before scaling, metres."""


def _named_levels(part: Schema, place: str) -> Iterator[tuple[str, LevelChoice]]:
    """Yield every option called `levels` inside a method, with its place in the recipe."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name == "levels":
            yield f"{place}.levels", value
        elif isinstance(value, Schema):
            yield from _named_levels(value, f"{place}.{name}")


class Recipe(Schema):
    """A complete recipe."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    teacher: Role
    student: Role
    distillation: Distillation
    selection: Selection = Selection()
    export: Export = Export()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        teacher, student = self.teacher.detector, self.student.detector
        if teacher.family != student.family:
            raise ValueError(
                f"teacher and student must be of one family; teacher.detector.family is {teacher.family!r} and "
                f"student.detector.family {student.family!r}"
            )
        method = self.distillation.method
        if isinstance(method, Ifkd) and method.head.frcnn_head != "rpn" and student.family != "faster_rcnn":
            raise ValueError(
                f"distillation.method.head.frcnn_head is {method.head.frcnn_head!r}, which only a faster_rcnn has; "
                f"the student is a {student.family}"
            )
        for place, choice in _named_levels(method, "distillation.method"):
            absent = [] if isinstance(choice, str) else [level for level in choice if level not in student.levels]
            if absent:
                raise ValueError(
                    f"{place} names {', '.join(absent)}, which a {student.family} lacks; "
                    f"it has {', '.join(student.levels)}"
                )
        return self

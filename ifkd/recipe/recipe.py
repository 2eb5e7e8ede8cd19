"""A recipe: everything that one detector's way from data to bundle depends on. configs/ holds complete ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ifkd.core.config import Schema
from ifkd.core.input_shapes import STEP_PX
from ifkd.core.postprocess import PostprocessConfig
from ifkd.imagery.contrast import Imagery
from ifkd.recipe.ifkd_options import IfkdOptions
from ifkd.recipe.levels import LEVELS, Family, Level, LevelChoice
from ifkd.recipe.method_options import CrossKdOptions, CwdOptions, MethodOptions, PkdOptions
from ifkd.recipe.validators import Fraction, NonNegative, rising


class AugmentationOptions(Schema):
    """Random changes of a training image; aerial images have no up."""

    flip: bool = True
    """Mirror left-right and top-bottom, each with probability 0.5."""
    quarter_turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees."""
    scale_jitter: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(rising)] = (1.0, 1.0)
    """Range of a random zoom around the recipe's scale."""
    photometric: Fraction = 0.0
    """Strength of random brightness, contrast and saturation; 0 leaves colors alone."""
    speckle: Fraction = 0.0
    """SAR: greatest deviation of random noise by which pixels are multiplied, one for all channels; 0 adds none."""


class DataOptions(Schema):
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
    augmentation: AugmentationOptions = AugmentationOptions()
    memory_mb: Annotated[int, Field(ge=0)] = 512
    """Memory for keeping scaled images between epochs, megabytes for each loading process."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load images; 0 loads in the training process."""

    @model_validator(mode="after")
    def _tile_fits(self) -> "DataOptions":
        if self.tile_px % STEP_PX:
            raise ValueError(f"tile_px must be a multiple of {STEP_PX}, got {self.tile_px}")
        if abs(self.tile_px / self.scale - round(self.tile_px / self.scale)) > 1e-6:
            raise ValueError(f"tile_px / scale must be whole pixels, got {self.tile_px} / {self.scale}")
        return self


class DetectorOptions(Schema):
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
    def _weights_exist(self) -> "DetectorOptions":
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


class TrainingOptions(Schema):
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
    momentum: Fraction = 0.9
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


class RoleOptions(Schema):
    """A detector and how it is trained alone."""

    detector: DetectorOptions
    training: TrainingOptions


class DistillationOptions(Schema):
    """A distillation run: the student learns from the teacher by `method`."""

    training: TrainingOptions
    method: MethodOptions
    min_teacher_map: Fraction = 0.05
    """A teacher below this on the validation split is refused before step 1."""
    cache_teacher: bool = False
    """Keep the teacher's pyramid, logits and box deltas on disk, as `ede.cache` keeps MobileSAM's answers."""
    cache_for: Literal["run", "seed"] = "run"
    """Which tiles caches are made for: those that come again within a run, or all that the runs of one seed draw, be
    it by crops and colors without end; then the first run of a study computes, and those beside it read."""
    rebuild_cache: bool = False
    """Make caches of another teacher, encoder, data set or preprocessing anew, instead of refusing them."""


class CalibrationOptions(Schema):
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
    max_map_loss: Fraction = 0.005
    """Largest loss of mAP on the validation split; layers stay in float until it holds."""


class ExportOptions(Schema):
    """What the bundle is made of."""

    precisions: tuple[Literal["fp32", "fp16", "int8", "int8-cpu"], ...] = ("fp32", "fp16")
    calibration: CalibrationOptions = CalibrationOptions()
    candidates_per_level: PositiveInt = 1000
    """Top-k of each pyramid level; TensorRT allows at most 3840."""
    max_batch: PositiveInt = 16
    tile_sides_px: tuple[PositiveInt, PositiveInt] | None = None
    """Least and largest height and width of tiles, multiples of 32 with `data.tile_px` between them, for files that
    take all of those sizes; by default they take `data.tile_px` alone."""
    overlap_px: PositiveInt = 64
    """Overlap of neighboring tiles in scenes, pixels after scaling; larger than most objects."""
    scene_score: Fraction = 0.3
    """Least score of an object on the map, when the user of the bundle names none."""
    gsd_m: PositiveFloat | None = None
    """Ground sample distance of the training images before scaling, meters."""

    @field_validator("tile_sides_px")
    @classmethod
    def _whole_steps(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and (value[0] > value[1] or any(side % STEP_PX for side in value)):
            raise ValueError(f"must be multiples of {STEP_PX}, the least first, got {list(value)}")
        return value


def _named_levels(part: Schema, place: str) -> Iterator[tuple[str, LevelChoice]]:
    """Yield every option called `levels` inside a method, with its place in the recipe."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name == "levels" and value is not None:
            yield f"{place}.levels", value
        elif isinstance(value, Schema):
            yield from _named_levels(value, f"{place}.{name}")


class Recipe(Schema):
    """A complete recipe."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataOptions
    teacher: RoleOptions
    student: RoleOptions
    distillation: DistillationOptions
    selection: PostprocessConfig = PostprocessConfig()
    export: ExportOptions = ExportOptions()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        teacher, student = self.teacher.detector, self.student.detector
        if teacher.family != student.family:
            raise ValueError(
                f"teacher and student must be of one family; teacher.detector.family is {teacher.family!r} and "
                f"student.detector.family {student.family!r}"
            )
        method = self.distillation.method
        if isinstance(method, IfkdOptions) and method.head.frcnn_head != "rpn" and student.family != "faster_rcnn":
            raise ValueError(
                f"distillation.method.head.frcnn_head is {method.head.frcnn_head!r}, which only a faster_rcnn has; "
                f"the student is a {student.family}"
            )
        if isinstance(method, CrossKdOptions) and student.family != "retinanet":
            raise ValueError(
                f"distillation.method is crosskd, which is for retinanet; the student is a {student.family}"
            )
        if isinstance(method, PkdOptions | CwdOptions | CrossKdOptions) and teacher.channels != student.channels:
            raise ValueError(
                f"distillation.method is {method.name}, which compares channel by channel and wants pyramids of one "
                f"width; teacher.detector.channels is {teacher.channels}, student.detector.channels {student.channels}"
            )
        for place, choice in _named_levels(method, "distillation.method"):
            absent = [] if isinstance(choice, str) else [level for level in choice if level not in student.levels]
            if absent:
                raise ValueError(
                    f"{place} names {', '.join(absent)}, which a {student.family} lacks; "
                    f"it has {', '.join(student.levels)}"
                )
        return self

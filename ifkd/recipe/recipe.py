"""Recipe of a detector: data, teacher, student, distillation and export. Complete recipes are in configs/."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ifkd.core.config import EARLIER_VERSION, Schema, override
from ifkd.core.errors import ConfigError
from ifkd.core.input_shapes import MAX_WINDOW_PX, STEP_PX
from ifkd.core.postprocess import PostprocessConfig
from ifkd.imagery.contrast import ImageryOptions
from ifkd.recipe.ifkd_options import BALANCED, IfkdOptions, merged
from ifkd.recipe.levels import LEVELS, Family, Level, LevelChoice
from ifkd.recipe.method_options import EQUAL_WIDTHS, CrossKdOptions, MethodOptions
from ifkd.recipe.moved_keys import moved_keys
from ifkd.recipe.screen_options import ScreenOptions
from ifkd.recipe.training_options import BalanceOptions, TrainingOptions
from ifkd.recipe.value_types import FolderName, Fraction, FractionBelowOne, PositiveFloat, PositiveRange, TopK


class AugmentationOptions(Schema):
    """Random augmentation of training images."""

    flip: bool = True
    """Flip left-right and top-bottom, each with probability 0.5."""
    quarter_turns: bool = True
    """Rotate by 0, 90, 180 or 270 degrees."""
    scale_jitter: PositiveRange = (1.0, 1.0)
    """Range of a random factor that multiplies `data.scale`."""
    photometric: Fraction = 0.0
    """Strength of random brightness, contrast and saturation changes; 0 disables them."""
    speckle: Fraction = 0.0
    """Maximum standard deviation of multiplicative noise for SAR, the same for all channels; 0 disables it."""


class DataOptions(Schema):
    """Options of the data set and of image loading."""

    root: Path | None = None
    """Folder that the paths below are relative to."""
    train: Path
    """COCO JSON of the training split."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | Path
    """COCO JSON of the validation split, which selects the best checkpoint; or the fraction of training images to hold
    out, by scene."""
    test: Path
    """COCO JSON of the test split."""
    images: Path | None = None
    """Image folder of all splits; by default `images` beside each JSON."""
    merge_classes: dict[str, str] = {}
    """Class name -> the class that replaces it."""
    scale: PositiveFloat = 1.0
    """Factor by which images and scenes are resized first."""
    tile_px: PositiveInt = 512
    """Side of training crops and exported tiles, pixels after scaling; a multiple of 32."""
    imagery: ImageryOptions = ImageryOptions()
    """Bands and contrast stretch of images and scenes."""
    augmentation: AugmentationOptions = AugmentationOptions()
    cache_mb: NonNegativeInt = 512
    """Memory for scaled images that are kept between epochs, megabytes per loading process."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that load images; 0 loads in the training process."""
    sensor: str | None = None
    """Sensor or product of the images, such as `Pleiades, pansharpened`, for the bundle's model card."""
    license: str | None = None
    """License of the images and labels, such as `CC-BY-4.0`, for the bundle's model card."""

    @model_validator(mode="after")
    def _tile_fits(self) -> "DataOptions":
        if self.tile_px % STEP_PX:
            raise ValueError(f"tile_px must be a multiple of {STEP_PX}, got {self.tile_px}")
        if abs(self.tile_px / self.scale - round(self.tile_px / self.scale)) > 1e-6:
            raise ValueError(f"tile_px / scale must be an integer, got {self.tile_px} / {self.scale}")
        if not 1 <= round(self.tile_px / self.scale) <= MAX_WINDOW_PX >= self.tile_px:
            sides = f"got tile_px {self.tile_px} and scale {self.scale}"
            raise ValueError(f"tile_px, and tile_px / scale, must be at most {MAX_WINDOW_PX}, {sides}")
        return self


class DetectorOptions(Schema):
    """Architecture and initial weights of a detector."""

    family: Family = "retinanet"
    backbone: Literal["resnet50", "resnet18", "mobilenet_v2"]
    channels: PositiveInt = 256
    """Channels of the feature pyramid and of the head."""
    head_init: Literal["normal", "kaiming"] = "normal"
    """Initialization of the head's convolutions: `normal` (standard deviation 0.01) suits 256 channels; use `kaiming`
    for fewer, where the signal would vanish."""
    pyramid_norm: Literal["none", "batch"] = "none"
    """Normalization after the convolutions of the feature pyramid: `batch` helps a detector without pretrained weights
    (He et al. 2019), and costs nothing in a bundle, because the export merges it with the convolutions."""
    anchor_scale: Annotated[float, Field(ge=1.0, le=16.0)] | None = None
    """Side of the smallest square anchor, in strides of its level: by default 4 for RetinaNet, which has anchors from
    32 px on P3, and 8 for Faster R-CNN, 32 px on P2. Use less where most objects are smaller."""
    oriented: bool = False
    """RetinaNet: detect oriented boxes; the labels need oriented boxes, or polygons of four corners."""
    backbone_weights: str = "none"
    """Weights of the backbone: `imagenet`, `none`, or the path of a torchvision state dict."""
    weights: str = "none"
    """Weights of the complete detector: `coco` (torchvision's, for ResNet-50), `none`, or the path of a torchvision
    detector's state dict. Matching tensors are loaded; the others are logged and keep their initial values."""
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0
    """Number of frozen backbone stages (1 is the stem and the first stage)."""
    norm: Literal["train", "frozen"] = "train"
    """Batch-norm statistics: updated in training, or those of the loaded weights."""
    box_head_width: PositiveInt = 1024
    """Faster R-CNN: features of the two fully connected layers of the box head."""
    proposals: TopK = 1000
    """Faster R-CNN: proposals per level before non-maximum suppression and per image after it, in inference."""
    sampled_rois: Annotated[int, Field(ge=4)] = 512
    """Faster R-CNN: maximum number of sampled regions per training image, a quarter of them foreground."""

    @model_validator(mode="after")
    def _weights_exist(self) -> "DetectorOptions":
        if self.weights == "coco" and self.backbone != "resnet50":
            raise ValueError(f'weights = "coco" exist only for resnet50; the backbone is {self.backbone}')
        return self

    @model_validator(mode="after")
    def _orientation_fits(self) -> "DetectorOptions":
        if self.oriented and self.family != "retinanet":
            raise ValueError(f"oriented = true requires the family retinanet; the family is {self.family}")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        """Names of the pyramid levels, finest first."""
        return LEVELS[self.family]

    @property
    def smallest_anchor(self) -> float:
        """`anchor_scale`, or its default."""
        return self.anchor_scale or {"retinanet": 4.0, "faster_rcnn": 8.0}[self.family]


class RoleOptions(Schema):
    """A detector and its training without distillation."""

    detector: DetectorOptions
    training: TrainingOptions


class DistillationOptions(Schema):
    """Distillation of the student from the teacher."""

    training: TrainingOptions
    method: MethodOptions
    balance: BalanceOptions = BalanceOptions()
    min_teacher_map: Fraction = 0.05
    """Minimum validation mAP of the teacher; a worse teacher is refused before training."""
    cache_teacher: bool = False
    """Cache the teacher's pyramid, logits and box deltas on disk, as `ede.cache` does for MobileSAM's outputs."""
    cache_scope: Literal["run", "seed"] = "run"
    """Tiles that are cached: `run` those that recur within a run; `seed` all that the runs of one seed draw, with any
    augmentation, so that the first run of a study writes the cache and the others read it."""
    rebuild_cache: bool = False
    """Recreate a cache of another teacher, encoder, data set or preprocessing instead of refusing it."""

    @model_validator(mode="before")
    @classmethod
    def _balanced_weights(cls, values: Any) -> Any:
        """Balance IFKD by default, and set its default weights where they are multiples of the task's gradient."""
        method = values.get("method") if isinstance(values, dict) else None
        balance = values.get("balance", {}) if isinstance(values, dict) else None
        if not (isinstance(balance, dict) and isinstance(method, dict) and method.get("name") == "ifkd"):
            return values
        default = "gradient" if method.get("preset", "ifkd") == "ifkd" else "constant"
        balance = {"form": default, **balance}
        method = merged(BALANCED, method) if balance["form"] == "gradient" else method
        return {**values, "balance": balance, "method": method}


class CalibrationOptions(Schema):
    """Options of INT8 quantization."""

    tiles: PositiveInt = 128
    """Number of training images, one tile each, from which activation ranges are computed."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    """Percentage of the values inside a range, for `percentile`."""
    float_head: bool = True
    """Keep the last layers of the head in float."""
    reduce_range: bool = True
    """Use 7-bit weights in `int8-cpu`; 8-bit products overflow on processors without VNNI."""
    max_map_loss: Fraction = 0.005
    """Maximum loss of mAP on the validation split; layers are kept in float until it is met."""


class ExportOptions(Schema):
    """Options of the exported bundle."""

    precisions: tuple[Literal["fp32", "fp16", "int8", "int8-cpu"], ...] = ("fp32", "fp16")
    calibration: CalibrationOptions = CalibrationOptions()
    candidates_per_level: TopK = 1000
    """Top-k per pyramid level; TensorRT allows at most 3840."""
    max_batch: PositiveInt = 16
    tile_sides_px: tuple[PositiveInt, PositiveInt] | None = None
    """Minimum and maximum height and width of tiles, multiples of 32 around `data.tile_px`, for files with dynamic
    input shapes; by default the input shape is fixed to `data.tile_px`."""
    overlap_px: PositiveInt = 64
    """Overlap of neighboring tiles in scenes, pixels after scaling; larger than most objects, smaller than a tile."""
    scene_score_threshold: FractionBelowOne | None = None
    """Default score threshold for scenes; by default it is chosen by F1 on the validation part."""
    class_agnostic_iou: Fraction | None = None
    """Of boxes of different classes in a scene with an IoU above this, only the best is kept; 1 keeps all. By default
    it is chosen together with the score threshold."""
    gsd_m: PositiveFloat | None = None
    """Ground sampling distance of the training images before scaling, meters."""
    scene_objects_per_km2: PositiveFloat | None = None
    """Expected number of objects per square kilometer of a scene; needs `gsd_m`. Validation images mostly show more
    objects, and thus less of the background that false detections come from. With this number, the score threshold is
    chosen for the precision in such scenes."""
    interop: bool = True
    """Write model.yolo.onnx, for QGIS, WebODM and other programs that read the layout of a YOLO."""

    @model_validator(mode="after")
    def _density_has_a_scale(self) -> "ExportOptions":
        if self.scene_objects_per_km2 is not None and self.gsd_m is None:
            raise ValueError("scene_objects_per_km2 needs gsd_m, the ground sampling distance of the training images")
        return self

    @field_validator("tile_sides_px")
    @classmethod
    def _multiples(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and (value[0] > value[1] or any(side % STEP_PX for side in value)):
            raise ValueError(f"must be multiples of {STEP_PX} in increasing order, got {list(value)}")
        return value


ORIENTED_POSTPROCESS = {"iou_threshold": 0.1}
"""Default of oriented detectors, chosen on validation parts (docs/results.md, "Oriented boxes")."""
DATA_LOCATIONS = ("data.root", "data.images", "data.train", "data.validation", "data.test")
"""Keys of a recipe that may change after the training, when its data moved."""
DATA_DESCRIPTION = ("data.sensor", "data.license")
"""Keys of a recipe that may change after the training, because they describe its data only."""


def _level_choices(part: Schema, key: str) -> Iterator[tuple[str, LevelChoice]]:
    """Yield every option `levels` of a method, with its dotted key."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name == "levels" and value is not None:
            yield f"{key}.levels", value
        elif isinstance(value, Schema):
            yield from _level_choices(value, f"{key}.{name}")


class Recipe(Schema):
    """A complete recipe."""

    name: FolderName
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataOptions
    teacher: RoleOptions
    student: RoleOptions
    distillation: DistillationOptions
    screen: ScreenOptions = ScreenOptions()
    postprocess: PostprocessConfig = PostprocessConfig()
    export: ExportOptions = ExportOptions()

    @model_validator(mode="before")
    @classmethod
    def _refuse_moved_keys(cls, values: Any) -> Any:
        if moved := moved_keys(values) if isinstance(values, dict) else {}:
            pairs = ", ".join(f"{old} to {new}" for old, new in moved.items())
            raise PydanticCustomError(EARLIER_VERSION, "has keys of an earlier version", {"hint": f"Move {pairs}."})
        return values

    @model_validator(mode="before")
    @classmethod
    def _oriented_suppression(cls, values: Any) -> Any:
        """Set the default IoU threshold of oriented boxes, which overlap less than the upright boxes around them."""
        match values:
            case {"student": {"detector": {"oriented": True}}}:
                values = {"postprocess": {}, **values}
                if isinstance(given := values["postprocess"], dict):
                    values["postprocess"] = ORIENTED_POSTPROCESS | given
        return values

    @model_validator(mode="after")
    def _tiles_fit(self) -> "Recipe":
        tile_px, overlap_px, sides = self.data.tile_px, self.export.overlap_px, self.export.tile_sides_px
        if overlap_px >= tile_px:
            raise ValueError(f"export.overlap_px must be below data.tile_px; they are {overlap_px} and {tile_px}")
        if sides is not None and not sides[0] <= tile_px <= sides[1]:
            raise ValueError(f"export.tile_sides_px must include data.tile_px; they are {list(sides)} and {tile_px}")
        return self

    @model_validator(mode="after")
    def _parts_match(self) -> "Recipe":
        teacher, student = self.teacher.detector, self.student.detector
        if teacher.family != student.family:
            raise ValueError(
                f"teacher and student must be of the same family; teacher.detector.family is {teacher.family!r} and "
                f"student.detector.family {student.family!r}"
            )
        if teacher.anchor_scale != student.anchor_scale:
            raise ValueError(
                "teacher and student must have the same anchors; teacher.detector.anchor_scale is "
                f"{teacher.anchor_scale} and student.detector.anchor_scale {student.anchor_scale}"
            )
        if teacher.oriented != student.oriented:
            raise ValueError(
                "teacher and student must both detect oriented boxes, or both upright ones; teacher.detector.oriented "
                f"is {teacher.oriented} and student.detector.oriented {student.oriented}"
            )
        method = self.distillation.method
        if isinstance(method, IfkdOptions) and method.head.frcnn_head != "rpn" and student.family != "faster_rcnn":
            raise ValueError(
                f"distillation.method.head.frcnn_head is {method.head.frcnn_head!r}, which requires faster_rcnn; "
                f"the student is a {student.family}"
            )
        if isinstance(method, CrossKdOptions) and student.family != "retinanet":
            family = student.family
            raise ValueError(f"distillation.method is crosskd, which requires retinanet; the student is a {family}")
        if isinstance(method, EQUAL_WIDTHS) and teacher.channels != student.channels:
            raise ValueError(
                f"distillation.method is {method.name}, which compares channel by channel and requires "
                f"equal channels; teacher.detector.channels is {teacher.channels}, student.detector.channels "
                f"{student.channels}"
            )
        for key, choice in _level_choices(method, "distillation.method"):
            if not choice:
                raise ValueError(f"{key} is empty; it must have at least one of {', '.join(student.levels)}")
            absent = [] if isinstance(choice, str) else [level for level in choice if level not in student.levels]
            if absent:
                raise ValueError(
                    f"{key} contains {', '.join(absent)}, which a {student.family} does not have; "
                    f"it has {', '.join(student.levels)}"
                )
        return self


def locate_data(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a trained detector with `KEY=VALUE` overrides of its data's location and description.

    Raises:
        ConfigError: An override is of another key, or is invalid.
    """
    for text in overrides:
        if (key := text.partition("=")[0].strip()) not in (changeable := DATA_LOCATIONS + DATA_DESCRIPTION):
            problem, expected = "This key of a trained detector's recipe cannot change", ", ".join(changeable)
            raise ConfigError(problem, got=key, expected=f"one of {expected}")
    return override(recipe, overrides, source="The command line") if overrides else recipe

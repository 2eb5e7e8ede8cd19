"""Plan of an export: checkpoint, effective recipe, model and tiles, resolved before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.bundle.bundle import MANIFEST_NAME, Bundle
from export.bundle.manifest import Precision
from export.int8.calibration_tiles import CalibrationTiles, ValidationTiles, calibration_tiles, validation_tiles
from export.onnx.exportable import ExportableDetector
from export.screen.screen_export import ScreenPlan, plan_screen
from export.tiles import SAMPLE_TILES, SampleTiles, sample_tiles
from ifkd.core.config import load, override
from ifkd.core.errors import ConfigError, DataError
from ifkd.core.files import require_writable, sha256_of
from ifkd.data.coco import CocoDataset, align_classes
from ifkd.data.splits import read_split
from ifkd.models.checkpoint import Checkpoint, build_from, load_checkpoint
from ifkd.recipe import Recipe
from ifkd.recipe.recipe import locate_data

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.toml"
SCREEN_LIMITS = ("screen.max_lost_fraction=", "screen.confidence=")
"""Options of a trained screen that the export uses."""


@dataclass(frozen=True, slots=True, eq=False)
class ExportPlan:
    """Everything an export needs."""

    checkpoint: Checkpoint
    checkpoint_sha256: str
    recipe: Recipe
    """The checkpoint's recipe with overrides."""
    model: ExportableDetector
    precisions: tuple[Precision, ...]
    """FP32 first: the other files are made from it."""
    sample: SampleTiles
    """Tiles for the check of tensor parity."""
    calibration: CalibrationTiles | None
    validation: ValidationTiles | None
    """Tiles for INT8; None if no INT8 file is written."""
    scene_validation: CocoDataset | DataError
    """Validation images for the choice of the scene thresholds, or the reason why there are none."""
    screen: ScreenPlan | None
    """The screen to be exported, if any."""
    out: Path
    """The bundle's folder."""
    accept_drift: bool
    """Write the bundle even if tensor parity fails."""


def plan_export(
    checkpoint_path: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    screen: Path | None = None,
    accept_drift: bool = False,
    base: Recipe | None = None,
) -> ExportPlan:
    """Return the plan; `overrides` are `KEY=VALUE` of the recipe's section `export`, with or without its prefix.

    They can also be of the data's location, such as `data.root`, of its description, such as `data.license`, and of the
    limits of a screen, such as `screen.max_lost_fraction`. `screen` is the checkpoint of a screen to be exported, too.
    They override the recipe `base`, by default the checkpoint's.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or the screen was trained on other pixels.
        ConfigError: An option is invalid.
        OutputError: The bundle's folder is not writable.
        DataError: INT8 is configured, and its images cannot be read or have other classes.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = locate_data(base or checkpoint.meta.recipe, [text for text in overrides if text.startswith("data.")])
    rest = [text for text in overrides if not text.startswith("data.")]
    keys = [text if text.startswith(SCREEN_LIMITS) else f"export.{text.removeprefix('export.')}" for text in rest]
    recipe = override(recipe, keys, source="The command line")
    require_writable(out / MANIFEST_NAME)
    calibration, validation = None, None
    if {"int8", "int8-cpu"} & set(recipe.export.precisions):
        classes = checkpoint.meta.classes
        calibration = calibration_tiles(recipe.data, recipe.export.calibration, classes=classes)
        validation = validation_tiles(recipe.data, recipe.postprocess, classes=classes)
    sample = SampleTiles.of_validation(validation.pixels[:SAMPLE_TILES]) if validation else sample_tiles(recipe.data)
    return ExportPlan(
        checkpoint=checkpoint,
        checkpoint_sha256=sha256_of(checkpoint_path),
        recipe=recipe,
        model=ExportableDetector(
            build_from(checkpoint),
            tile_px=(recipe.data.tile_px, recipe.data.tile_px),
            candidates_per_level=recipe.export.candidates_per_level,
            tile_sides_px=recipe.export.tile_sides_px,
        ),
        precisions=tuple(dict.fromkeys(("fp32", *recipe.export.precisions))),
        sample=sample,
        calibration=calibration,
        validation=validation,
        scene_validation=_scene_validation(recipe, checkpoint.meta.classes, needed=screen is not None),
        screen=None if screen is None else plan_screen(screen, recipe),
        out=out,
        accept_drift=accept_drift,
    )


def plan_added_screen(
    bundle: Bundle, screen: Path, *, overrides: Sequence[str] = (), accept_drift: bool = False
) -> ExportPlan:
    """Return the plan for adding a screen to a bundle; see `add_screen` and `plan_export`.

    Raises:
        ConfigError: An override is not of the data's location or of the screen's limits, or is invalid.
    """
    for text in overrides:
        if not text.startswith(("data.", *SCREEN_LIMITS)):
            expected = f"data.KEY, {' or '.join(one.removesuffix('=') for one in SCREEN_LIMITS)}"
            hint = "Name the checkpoint of the bundle to export it with other options."
            raise ConfigError(
                "A bundle keeps its options when a screen is added", got=text, expected=expected, hint=hint
            )
    return plan_export(
        bundle.file(WEIGHTS_NAME),
        bundle.path,
        overrides=overrides,
        screen=screen,
        accept_drift=accept_drift,
        base=load(bundle.file(CONFIG_NAME), Recipe),
    )


def _scene_validation(recipe: Recipe, classes: Sequence[str], *, needed: bool) -> CocoDataset | DataError:
    options = recipe.export
    if not needed and options.scene_score_threshold is not None and options.class_agnostic_iou is not None:
        return DataError("the recipe states them")
    try:
        return align_classes(read_split(recipe.data, "validation"), classes)
    except DataError as error:
        return error

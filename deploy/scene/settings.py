"""Detection settings of a scene: the bundle's defaults with the user's overrides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deploy.scene.filters import SceneFilters
from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.acquisition_time import AcquisitionTime
from deploy.scene.read.aoi import AreaOfInterest
from deploy.scene.read.scene import Scene, override
from deploy.scene.training_range import pixel_remarks, training_remarks
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import BundleError, UsageError
from ifkd.core.input_shapes import MAX_WINDOW_PX, STEP_PX, InputShapes
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid
from ifkd.imagery.address import RasterAddress
from ifkd.imagery.contrast import AlphaBand

EDGE_TOLERANCE_ENGINE_PX = 2.0
"""A box this close to a tile's edge counts as cut by it, engine pixels."""
AUDIT_FRACTION = 0.02
"""Default fraction of the skipped tiles that are searched all the same."""
MAX_GSD_RATIO = 10.0
"""Largest ground sample distance of a scene, relative to that of the training images."""
MAX_MULTIPLE_PX = 16
"""Largest multiple at which windows start so that resized tiles share their pixels, scene pixels."""
INTEGER_TOLERANCE = 1e-6
"""Tolerance for treating a value as an integer."""


class ScreenSettings(Schema):
    """Choice of the tiles that are searched, by the screen of a bundle."""

    threshold: float
    """Least objectness of a tile that is searched; with 0, all are."""
    auto: bool
    """Whether the entire scene is searched if the screen lets almost all tiles pass."""
    scale: float
    """Factor from the engine's pixels to the screen's."""
    stride: int
    """Side of a cell, pixels of the screen."""
    context_px: int
    """Pixels of the screen around a cell that affect its value."""
    margin_px: float
    """A tile is searched if a cell within this distance of it is at least the threshold, pixels of the engine."""
    bound: float | None = None
    """Upper bound of the expected fraction of lost detections at this threshold; None if it is unknown."""
    confidence: float | None = None
    """Probability of the bound over draws of the calibration scenes; None if it holds on average over such draws."""
    audit_fraction: float = AUDIT_FRACTION
    """Fraction of the skipped tiles that are searched all the same, to estimate the loss."""
    audit_seed: int = 0
    """Seed of the choice of these tiles; the name of the scene is added to it."""


class DetectionSettings(Schema):
    """Everything except bundle and scene that the detections of a scene depend on."""

    scale: float
    """Scale factor from scene pixels to engine pixels; a tile's side divided by it is an integer."""
    overlap_px: int
    """Minimum overlap of adjacent tiles, engine pixels."""
    postprocess: PostprocessConfig
    """Postprocessing within a tile."""
    merge: MergeSettings
    """Merging across tiles; distances are scene pixels."""
    strict: bool = False
    """Whether to fail at the first unreadable part of the scene."""
    aoi: AreaOfInterest | None = None
    """Area of interest; None for the entire scene."""
    tile_px: tuple[int, int] | None = None
    """(height, width) of a tile, engine pixels; None for the engine's default."""
    gsd_m: float | None = None
    """Ground sample distance of the scene, as stated or else as of the training images, meters; None if unknown."""
    screen: ScreenSettings | None = None
    """Screen that chooses the tiles; None to search all."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneRequest:
    """Inputs of a run that are the same for all its scenes."""

    bundle: Bundle
    settings: DetectionSettings
    bands: tuple[int, ...] | None = None
    """One or three band numbers, from 1; None for the bundle's."""
    scale_range: tuple[float, float] | None = None
    """Values that become 0 and 255; None for the bundle's."""
    nodata: float | None = None
    alpha: AlphaBand | None = None
    """Band that is 0 where a scene has no data, or `none`; None for the bundle's."""
    batch: int | None = None
    """Tiles per inference; None for the engine's maximum."""
    formats: Sequence[str] | None = None
    """Output formats; None for all that a scene supports."""
    crops: int = 0
    """Number of the best detections of a scene whose pictures are written."""
    resume: bool = True
    """Whether to resume an interrupted run into the same folder."""
    filters: SceneFilters | None = None
    """Filters of the detections."""
    ground_truth: Path | None = None
    """Labels to evaluate the detections with."""

    def open_scene(self, source: Path | RasterAddress | str | Array, *, time: AcquisitionTime | None = None) -> Scene:
        """Open a scene with the bundle's image preprocessing and the overrides; see `Scene` for its time.

        Raises:
            SceneError: The scene is unreadable, or cannot be converted to RGB.
            UsageError: An override is invalid.
        """
        manifest = self.bundle.manifest
        imagery = override(
            manifest.input.imagery, bands=self.bands, limits=self.scale_range, nodata=self.nodata, alpha=self.alpha
        )
        scene = Scene(source, imagery=imagery, time=time)
        try:
            remarks = training_remarks(scene.info, manifest, imagery)
            remarks += pixel_remarks(scene.info, scene.size, self.settings.gsd_m)
        except BaseException:
            scene.close()
            raise
        scene.info = replace(scene.info, remarks=(*scene.info.remarks, *remarks))
        return scene

    def grid_of(self, scene: Scene) -> TileGrid:
        """Return the tiles of a scene; see `grid_for`."""
        tile_px = tile_for(scene.size, self.bundle.manifest.input.sizes, self.settings)
        return grid_for(scene.size, tile_px, self.settings)


def settings_for(
    manifest: Manifest,
    *,
    score_threshold: float | None = None,
    overlap_px: int | None = None,
    gsd_m: float | None = None,
    merge: str = "border",
    metric: str = "iou",
    class_agnostic_iou: float | None = None,
    strict: bool = False,
    aoi: AreaOfInterest | None = None,
    tile_px: int | None = None,
    screen: Literal["off", "auto"] | float = "off",
    audit: float = AUDIT_FRACTION,
) -> DetectionSettings:
    """Return the settings of a bundle with overrides.

    Args:
        manifest: Manifest of the bundle.
        score_threshold: Minimum score of a detection.
        overlap_px: Minimum overlap of adjacent tiles, engine pixels.
        gsd_m: Ground sample distance of the scene, meters; the scene is resampled to that of the training images.
        merge: Merge method: `border`, `nms`, `nmm` or `greedy_nmm`.
        metric: Overlap of two boxes: `iou` or `ios`.
        class_agnostic_iou: Of boxes of different classes with an IoU above this, only the best is kept; 1 keeps all.
        strict: Fail at the first unreadable part of the scene.
        aoi: Area of interest; see `read_aoi`.
        tile_px: Height and width of a tile, engine pixels, for a bundle that accepts several sizes.
        screen: `off`, `auto` or the least objectness of a tile that is searched; see `ScreenSettings`.
        audit: Fraction of the skipped tiles that are searched all the same.

    Raises:
        UsageError: A setting is invalid for this bundle.
        BundleError: A tile divided by the bundle's scale is not a whole number of pixels.
    """
    if score_threshold is not None and not 0.0 <= score_threshold < 1.0:
        raise UsageError("The score threshold must be at least 0 and below 1", got=score_threshold)
    if class_agnostic_iou is not None and not 0.0 <= class_agnostic_iou <= 1.0:
        raise UsageError("The class-agnostic IoU must be from 0 to 1", got=class_agnostic_iou)
    tile = manifest.input.tile_px if tile_px is None else (tile_px, tile_px)
    if not manifest.input.sizes.accepts(tile):
        raise UsageError(
            "The bundle's files do not accept tiles of this size",
            got=f"{tile[0]} x {tile[1]} px",
            expected=str(manifest.input.sizes),
            hint="Omit --tile, or export the checkpoint with tile_sides_px=[SMALLEST, LARGEST].",
        )
    defaults = manifest.defaults
    threshold = defaults.scene_score_threshold if score_threshold is None else score_threshold
    postprocess = defaults.postprocess.model_copy(update={"score_threshold": threshold})
    scale = _scale(manifest, tile, gsd_m)
    return DetectionSettings(
        scale=scale,
        overlap_px=defaults.overlap_px if overlap_px is None else overlap_px,
        postprocess=postprocess,
        merge=MergeSettings(
            method=_one_of("merge", merge, ("border", "nms", "nmm", "greedy_nmm")),
            metric=_one_of("metric", metric, ("iou", "ios")),
            threshold=postprocess.iou_threshold,
            edge_tolerance_px=EDGE_TOLERANCE_ENGINE_PX / scale,
            class_agnostic_iou=defaults.class_agnostic_iou if class_agnostic_iou is None else class_agnostic_iou,
        ),
        strict=strict,
        aoi=aoi,
        tile_px=None if tile_px is None else tile,
        gsd_m=defaults.gsd_m if gsd_m is None else gsd_m,
        screen=_screen(
            manifest, screen, audit, is_as_calibrated=_is_as_calibrated(manifest, threshold, overlap_px, merge)
        ),
    )


def tile_for(size: tuple[int, int], sizes: InputShapes, settings: DetectionSettings) -> tuple[int, int]:
    """Return the (height, width) of a tile for a scene of `size` (height, width), engine pixels.

    If the engine accepts several sizes, a side longer than the scene is reduced to what the scene needs.
    """
    height, width = settings.tile_px or sizes.opt
    if sizes.side_range is None:
        return height, width
    smallest = sizes.side_range[0]
    return _reduced(size[0], height, smallest, settings), _reduced(size[1], width, smallest, settings)


def _reduced(length: int, side: int, smallest: int, settings: DetectionSettings) -> int:
    """Return the smallest side, at most `side`, whose window is a whole number of pixels and covers `length`."""
    for shorter in range(smallest, side, STEP_PX):
        window = shorter / settings.scale
        if window >= length and _is_integer(window) and shorter > settings.overlap_px:
            return shorter
    return side


def _is_integer(value: float) -> bool:
    return abs(value - round(value)) <= INTEGER_TOLERANCE


def grid_for(size: tuple[int, int], tile_px: tuple[int, int], settings: DetectionSettings) -> TileGrid:
    """Return the tiles of a scene of `size`, scene pixels, for an engine with tiles of `tile_px`.

    Their pixels are those of one grid over the resized scene if this moves a window by less than `MAX_MULTIPLE_PX`.

    Raises:
        UsageError: The overlap is invalid for the tile.
    """
    if not 0 <= settings.overlap_px < min(tile_px):
        got = f"{settings.overlap_px} with tiles of {tile_px[0]}x{tile_px[1]}"
        problem = "The overlap must be at least 0 and smaller than the engine's tile"
        raise UsageError(problem, got=got, hint="Lower --overlap-px.")
    height, width = round(tile_px[0] / settings.scale), round(tile_px[1] / settings.scale)
    overlap = min(round(settings.overlap_px / settings.scale), min(height, width) - 1)
    multiples = height // math.gcd(height, tile_px[0]), width // math.gcd(width, tile_px[1])
    fits = max(multiples) <= min(MAX_MULTIPLE_PX, min(height, width) - overlap)
    return TileGrid(size, (height, width), overlap, multiples if fits else (1, 1))


def _scale(manifest: Manifest, tile: tuple[int, int], gsd_m: float | None) -> float:
    (height, width), scale, trained = tile, manifest.input.scale, manifest.defaults.gsd_m
    if gsd_m is None:
        if all(_is_integer(side / scale) and round(side / scale) >= 1 for side in tile):
            return scale
        raise BundleError(
            "A tile divided by the bundle's scale is not a whole number of pixels",
            got=f"tile {height}x{width} and scale {scale:g}",
            hint="Export it again with a scale that divides the tile.",
        )
    if trained is None:
        problem = "The bundle does not state the ground sample distance of its training images"
        hint = "Export the checkpoint again with gsd_m=METERS, which needs no training."
        raise UsageError(problem, got=f"gsd_m {gsd_m:g}", hint=hint)
    largest = max(tile) / scale
    low, high = trained * min(1.0, largest / MAX_WINDOW_PX), trained * MAX_GSD_RATIO
    if not low <= gsd_m <= high:
        raise UsageError(
            "Objects of the scene would not be visible in a tile, or a tile would not fit in memory",
            got=f"a ground sample distance of {gsd_m:g} m",
            expected=f"{low:.3g} to {high:.3g} m, as that of the training images is {trained:g} m",
            hint="State --gsd-m in meters.",
        )
    return height / max(1, round(height / (scale * gsd_m / trained)))  # gives a whole number of scene pixels


def _is_as_calibrated(manifest: Manifest, score_threshold: float, overlap_px: int | None, merge: str) -> bool:
    """Return whether a search has no detections that the calibration of the screen has not seen."""
    calibration = manifest.screen.calibration if manifest.screen is not None else None
    if calibration is None or score_threshold < calibration.score_threshold:
        return False
    return merge in ("border", "nms") and (overlap_px is None or overlap_px >= manifest.defaults.overlap_px)


def _screen(manifest: Manifest, choice: float | str, audit: float, *, is_as_calibrated: bool) -> ScreenSettings | None:
    """Return the settings of a screen; None if it is off, or has no threshold of its own."""
    record = manifest.screen
    if not 0.0 <= audit <= 1.0:
        raise UsageError("The fraction of audited tiles must be from 0 to 1", got=audit)
    if isinstance(choice, str):
        if _one_of("screen", choice, ("off", "auto")) == "off" or record is None or record.threshold is None:
            return None
        threshold = record.threshold
    elif record is None:
        hint = "Train one with `ifkd train --role screen` and export the bundle with it, or omit --screen."
        raise UsageError("The bundle has no screen", got=f"a threshold of {choice:g}", hint=hint)
    elif not 0.0 <= choice <= 1.0:
        raise UsageError("The threshold of a screen must be from 0 to 1", got=choice)
    else:
        threshold = choice
    calibration = record.calibration
    is_bounded = is_as_calibrated and record.threshold is not None and threshold <= record.threshold
    return ScreenSettings(
        threshold=threshold,
        auto=isinstance(choice, str),
        scale=record.scale,
        stride=record.stride,
        context_px=record.context_px,
        margin_px=record.margin_px or max(float(manifest.defaults.overlap_px), record.cell_px),
        bound=calibration.bound if calibration is not None and is_bounded else None,
        confidence=calibration.confidence if calibration is not None and is_bounded else None,
        audit_fraction=audit,
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise UsageError(f"There is no {name} {value!r}", expected=f"one of {', '.join(known)}")
    return value

"""Audit of a screen: what the skipped tiles that are searched all the same say about the detections that it loses.

Each place belongs to one tile, the one whose center is nearest, so that overlapping tiles count an object once. The
loss is the number of detections in skipped tiles, estimated from the audited ones, and that of the detections which are
left out because they touch a skipped tile, if their place belongs to a searched one.
"""

from dataclasses import dataclass

import numpy as np

from deploy.scene.merge.merge import TileDetections
from deploy.scene.read.georeference import centers
from deploy.scene.screen.tile_selection import TileSelection
from deploy.scene.settings import ScreenSettings
from export.bundle.screen_record import EXCHANGEABLE
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.tiling import TileGrid
from ifkd.data.intervals import CONFIDENCE, Interval, poisson_interval


class AuditedDetection(Schema):
    """A detection in an audited tile, which is not in the result."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2, scene pixels."""
    label: str
    score: float


class AuditRecord(Schema):
    """Audit of a scene. Its intervals assume that lost detections do not depend on each other."""

    tiles: int
    """Skipped tiles that were searched all the same."""
    found: tuple[AuditedDetection, ...]
    """Detections in them, each place counted in one tile."""
    lost: float
    """Estimated number of lost detections in the scene."""
    lost_interval: Interval
    lost_fraction: float
    """The same, relative to the detections of a search of all tiles; 0 without any."""
    lost_fraction_interval: Interval
    confidence: float = CONFIDENCE
    """Confidence of the intervals."""
    contradicts_bound: bool
    """Whether the interval is above the bound."""


class ScreeningRecord(Schema):
    """Tiles that the screen of a bundle skipped in a scene, and an estimate of what was lost."""

    threshold: float
    is_on: bool
    """False if the screen switched itself off, as it let almost all tiles pass: all were searched."""
    passed: int
    """Tiles that passed, among them those without data and those that could not be read."""
    skipped: int
    """Tiles whose detections are not in the result."""
    left_out: int
    """Detections of passed tiles that are not in the result, as they touch a skipped tile, which might change them."""
    read_reduction: float
    """Scene pixels per pixel that the screen read: above 1 with overviews of the file."""
    bound: float | None
    """Upper bound of the expected fraction of lost detections, from the calibration of the bundle; None if unknown."""
    confidence: float | None = None
    """Probability of the bound over draws of the calibration scenes; None without one, or if it holds on average."""
    assumption: str | None
    """Condition under which the bound holds."""
    audit: AuditRecord | None
    """None if no tile was skipped or none audited."""

    @property
    def contradiction(self) -> str | None:
        """The contradiction between audit and bound in words; None without one."""
        if self.audit is None or self.bound is None or not self.audit.contradicts_bound:
            return None
        low, high = self.audit.lost_fraction_interval
        return (
            f"The audit contradicts the bound of the screen, {self.bound:.2%}: it estimates that "
            f"{self.audit.lost_fraction:.1%} ({low:.1%} to {high:.1%}) of the detections are lost. Search this scene "
            "without the screen"
        )

    def summary(self) -> str:
        """Return the outcome in words."""
        if not self.is_on:
            return f"Screen: off, as {self.passed} tiles or almost all would pass"
        bound = "no known bound" if self.bound is None else f"at most {self.bound:.2%} lost in expectation"
        bound += f" with a confidence of {self.confidence:.0%}" if self.confidence is not None else ""
        text = f"Screen: {self.skipped} tiles skipped, {self.passed} passed at {self.threshold:g}, {bound}"
        if self.audit is not None:
            low, high = self.audit.lost_interval
            text += f"; audit of {self.audit.tiles}: {self.audit.lost:.3g} lost ({low:.3g} to {high:.3g})"
        return text if self.bound is None else f"{text}. {self.assumption}"


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Detections that are not in the result because of a screen."""

    dropped: TileDetections
    """Merged detections that touch a skipped tile."""
    audited: TileDetections
    """Detections in audited tiles, not merged."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneScreening:
    """Outcome of a screen in a scene."""

    selection: TileSelection
    record: ScreeningRecord


def screening_of(
    selection: TileSelection,
    left_out: LeftOut,
    settings: ScreenSettings,
    grid: TileGrid,
    *,
    kept: int,
    classes: tuple[str, ...],
) -> SceneScreening:
    """Return the outcome of a screen beside which `kept` detections are in the result."""
    record = ScreeningRecord(
        threshold=settings.threshold,
        is_on=selection.is_on,
        passed=selection.passed,
        skipped=int(selection.skipped.sum()),
        left_out=len(left_out.dropped),
        read_reduction=selection.reduction,
        bound=settings.bound,
        confidence=settings.confidence,
        assumption=None if settings.bound is None else EXCHANGEABLE,
        audit=_audit(selection, left_out, grid, bound=settings.bound, kept=kept, classes=classes),
    )
    return SceneScreening(selection, record)


def _audit(
    selection: TileSelection,
    left_out: LeftOut,
    grid: TileGrid,
    *,
    bound: float | None,
    kept: int,
    classes: tuple[str, ...],
) -> AuditRecord | None:
    skipped, tiles = int(selection.skipped.sum()), int(selection.audited.sum())
    if not tiles:
        return None
    audited, dropped = left_out.audited, left_out.dropped
    found = audited.select(owners_of(audited.detections.boxes, grid) == audited.tiles).in_canonical_order()
    known = int((~selection.skipped[owners_of(dropped.detections.boxes, grid)]).sum())
    count, scale = len(found), skipped / tiles
    low, high = (count, count) if tiles == skipped else poisson_interval(count)
    lost = (count * scale + known, low * scale + known, high * scale + known)
    estimate, *limits = (one / (one + kept) if one else 0.0 for one in lost)
    boxes, scores = found.detections.boxes.round(1).tolist(), found.detections.scores.tolist()
    names = [classes[label] for label in found.detections.labels.tolist()]
    return AuditRecord(
        tiles=tiles,
        found=tuple(
            AuditedDetection(box=tuple(box), label=name, score=round(score, 6))
            for box, name, score in zip(boxes, names, scores, strict=True)
        ),
        lost=lost[0],
        lost_interval=(float(lost[1]), float(lost[2])),
        lost_fraction=estimate,
        lost_fraction_interval=(limits[0], limits[1]),
        contradicts_bound=bound is not None and limits[0] > bound,
    )


def owners_of(boxes: Array, grid: TileGrid) -> Array:
    """Return the tile whose center is nearest to that of each box [n, 4], int64 [n]."""
    middle = centers(boxes)
    column, row = (
        np.searchsorted(_borders(starts), middle[:, axis] - side / 2, side="right")
        for axis, starts, side in ((0, grid.lefts, grid.tile_px[1]), (1, grid.tops, grid.tile_px[0]))
    )
    return row * len(grid.lefts) + column


def _borders(starts: list[int]) -> Array:
    """Return the middles between neighboring tiles."""
    positions = np.array(starts, np.float64)
    return (positions[1:] + positions[:-1]) / 2

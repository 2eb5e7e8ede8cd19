"""Where drift enters: the same images followed stage by stage, until two engines stop agreeing.

    image bytes ─► preprocess ─► raw head ─► decode ─► select ─► merge
                   tiles         scores,     boxes     of each   of all
                                 classes               tile      tiles

Candidates come out of the graph with their boxes decoded. Scores and classes are the head's alone, so they tell the raw
head from the decoding: a mistake in decoding moves boxes and leaves scores as they were. A drift of a head that has no
direction and touches nearly every candidate of a file that is not fp32 is that of its *precision*.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploy.accuracy.image_detection import ImageResult
from deploy.parity.matching import Pairing, greedy_pairs, match
from deploy.parity.tolerances import Tolerances
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas, pairwise_iou
from ifkd.core.postprocess import PostprocessConfig

StageName = Literal["preprocess", "raw head", "decode", "select", "merge"]
Source = Literal["preprocess", "raw head", "decode", "select", "merge", "precision"]
LEAST_IOU = 0.25
FAR_SCORE = 1e-4
"""Candidates without overlap are one, moved far, when class and score agree this closely."""
WIDESPREAD = 0.5
"""Share of the candidates that rounding moves, at least."""


class Stage(Schema):
    """One stage of both engines, compared."""

    name: StageName
    compares: str
    """What was compared, and in which unit."""
    compared: int
    """Values compared."""
    max: float | None
    """Largest absolute difference; None when nothing was compared."""
    mean: float | None
    """Mean absolute difference."""
    cosine: float | None
    """Cosine between both sides' values, each as one vector."""
    agrees: bool
    finding: str
    """What was found, in words."""


class Location(Schema):
    """Where two engines part."""

    stages: tuple[Stage, ...]
    """In the order of the computation."""
    enters_at: Source | None
    """None when every stage agrees."""
    because: str


@dataclass(frozen=True, slots=True)
class TileDrift:
    """How far the tiles that two engines were given lie apart."""

    images: int
    """Images whose tiles were compared, by the digest of their bytes."""
    other: int
    """Images whose tiles are not the same bytes; the figures are those of their tiles, gray values of 0 to 255."""
    max: float
    """Largest absolute difference; 0 where all bytes are the same."""
    mean: float
    cosine: float


def tile_drift(sides: Iterable[tuple[Array, ...]], *, images: int, other: int) -> TileDrift:
    """Return how far tiles lie apart.

    Args:
        sides: For each image whose bytes differ, the tiles of the reference and of the subject, uint8 of any shape; two
            of another shape differ by the whole range.
        images: Images that were compared.
        other: How many of them differ.
    """
    most = total = count = inner = ours_squared = theirs_squared = 0.0
    for ours, theirs in sides:
        if ours.shape != theirs.shape:
            return TileDrift(images, other, 255.0, 255.0, 0.0)
        mine, its = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
        apart = np.abs(mine - its)
        most, total, count = max(most, float(apart.max())), total + float(apart.sum()), count + apart.size
        inner += float(mine @ its)
        ours_squared, theirs_squared = ours_squared + float(mine @ mine), theirs_squared + float(its @ its)
    norm = (ours_squared * theirs_squared) ** 0.5
    return TileDrift(images, other, most, total / count if count else 0.0, inner / norm if norm else 1.0)


class _Aligned:
    """Candidates of all images, paired; arrays run in parallel."""

    def __init__(
        self, reference: Mapping[int, ImageResult], subject: Mapping[int, ImageResult], selection: PostprocessConfig
    ) -> None:
        self.flips = self.missing = self.extra = 0
        ours: list[Detections] = []
        theirs: list[Detections] = []
        for image_id, answer in reference.items():
            mine, other = answer.candidates, subject[image_id].candidates
            pairs, flips = _pairs(mine, other)
            self.flips += len(flips)
            rows = np.array([row for row, _ in [*pairs, *flips]], np.int64)
            columns = np.array([column for _, column in [*pairs, *flips]], np.int64)
            self.missing += _alone(mine, rows, selection)
            self.extra += _alone(other, columns, selection)
            ours.append(mine.select(rows))
            theirs.append(other.select(columns))
        self.reference = Detections.concatenate(ours)
        self.subject = Detections.concatenate(theirs)

    def __len__(self) -> int:
        return len(self.reference)


def locate_drift(
    reference: Mapping[int, ImageResult],
    subject: Mapping[int, ImageResult],
    selection: PostprocessConfig,
    limits: Tolerances,
    precision: Precision,
    *,
    tiles: TileDrift,
) -> Location:
    """Return where a subject parts from the reference.

    Args:
        reference: Answers by image id, with candidates.
        subject: Answers to the same images.
        selection: The thresholds both used.
        limits: The worst that passes.
        precision: The subject's.
        tiles: How far the tiles lie apart.
    """
    aligned = _Aligned(reference, subject, selection)
    stages = (
        _preprocess(tiles),
        _raw_head(aligned, limits),
        _decode(aligned, limits),
        _chosen("select", "detections of each tile, lost or invented", _by_tile(reference), _by_tile(subject), limits),
        _chosen("merge", "detections of whole images, lost or invented", reference, subject, limits),
    )
    apart = [stage for stage in stages if not stage.agrees]
    if not apart:
        return Location(stages=stages, enters_at=None, because="every stage agrees")
    first = apart[0]
    because = f"{first.name} is the first stage that does not agree: {first.finding}"
    source: Source = first.name
    if first.name == "raw head" and _resampled(aligned, limits):
        source = "preprocess"
        because = (
            "all boxes shift together and the scores change with them, as they do when the image itself was resampled "
            "off its place inside the engine"
        )
    elif first.name in {"raw head", "decode"} and precision != "fp32" and _rounded(aligned, limits):
        source = "precision"
        because = f"nearly every candidate moves, in no common direction, as rounding to {precision} does"
    return Location(stages=stages, enters_at=source, because=because)


def _pairs(mine: Detections, other: Detections) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return index pairs of candidates that are one, and of those that are one but for their class."""
    pairs: list[tuple[int, int]] = []
    for label in np.union1d(mine.labels, other.labels):
        rows, columns = np.flatnonzero(mine.labels == label), np.flatnonzero(other.labels == label)
        found = _closest(mine.select(rows), other.select(columns))
        pairs += [(int(rows[i]), int(columns[j])) for i, j in found]
    used = np.array(pairs, np.int64).reshape(-1, 2)
    rows, columns = _rest(len(mine), used[:, 0]), _rest(len(other), used[:, 1])
    found = greedy_pairs(
        mine.boxes[rows], other.boxes[columns], mine.scores[rows], other.scores[columns], least_iou=0.9
    )
    return pairs, [(int(rows[i]), int(columns[j])) for i, j in found]


def _closest(mine: Detections, other: Detections) -> list[tuple[int, int]]:
    """Return index pairs of one class: best of IoU less score difference first, then those moved far."""
    apart = np.abs(mine.scores[:, None] - other.scores[None, :])
    iou = pairwise_iou(mine.boxes, other.boxes)
    merit = np.where(iou >= LEAST_IOU, iou - apart, np.where(apart <= FAR_SCORE, -1.0 - apart, -np.inf))
    rows, columns = np.nonzero(np.isfinite(merit))
    free_rows, free_columns = np.ones(len(mine), bool), np.ones(len(other), bool)
    pairs = []
    for index in np.lexsort((columns, rows, -merit[rows, columns])):
        row, column = int(rows[index]), int(columns[index])
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    return pairs


def _rest(count: int, used: Array) -> Array:
    return np.setdiff1d(np.arange(count), used)


def _alone(candidates: Detections, used: Array, selection: PostprocessConfig) -> int:
    """Return how many candidates above the score threshold have no partner."""
    rest = _rest(len(candidates), used)
    return int((candidates.scores[rest] > selection.score_threshold * 1.1).sum())


def _preprocess(tiles: TileDrift) -> Stage:
    words = f"the tiles of {tiles.other} of {tiles.images} images differ, by up to {tiles.max:g} gray values"
    return Stage(
        name="preprocess",
        compares="tiles of images, gray values 0 to 255",
        compared=tiles.images,
        max=tiles.max,
        mean=tiles.mean,
        cosine=tiles.cosine,
        agrees=not tiles.other,
        finding=words if tiles.other else "same bytes",
    )


def _raw_head(aligned: _Aligned, limits: Tolerances) -> Stage:
    ours, theirs = aligned.reference.scores.astype(np.float64), aligned.subject.scores.astype(np.float64)
    apart = np.abs(ours - theirs)
    findings = []
    if aligned.flips > limits.class_flips:
        findings.append(f"the class of {aligned.flips} candidates changed")
    counted = len(aligned) + (aligned.missing + aligned.extra) / 2
    if counted and len(aligned) / counted < limits.matched_share:
        findings.append(f"{aligned.missing} candidates are missing and {aligned.extra} are new")
    if len(aligned):
        if _has_factor(aligned, limits):
            findings.append(f"scores are {np.median(_ratios(aligned)):.3f} times the reference's")
        elif apart.max() > limits.score_max or np.percentile(apart, 99) > limits.score_p99:
            findings.append(f"scores differ by up to {apart.max():.3g}")
    return _stage("raw head", "scores and classes of candidates", ours, theirs, findings)


def _decode(aligned: _Aligned, limits: Tolerances) -> Stage:
    ours, theirs = aligned.reference.boxes.astype(np.float64), aligned.subject.boxes.astype(np.float64)
    findings = []
    if len(aligned):
        drift = 1 - _iou_of_pairs(ours, theirs)
        right, down = np.median(_shifts(aligned), axis=0)
        moved = np.abs(ours - theirs).max(axis=1)
        if _has_shift(aligned, limits):
            findings.append(f"boxes are shifted by {right:+.2f} px to the right and {down:+.2f} px down")
        elif drift.max() > limits.iou_drift_max or np.percentile(drift, 99) > limits.iou_drift_p99:
            findings.append(f"{int((drift > limits.iou_drift_p99).sum())} boxes differ, by up to {moved.max():.2f} px")
    return _stage("decode", "boxes of candidates, pixels", ours.ravel(), theirs.ravel(), findings)


def _stage(name: StageName, compares: str, ours: Array, theirs: Array, findings: list[str]) -> Stage:
    apart = np.abs(ours - theirs)
    norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return Stage(
        name=name,
        compares=compares,
        compared=len(ours),
        max=float(apart.max()) if len(ours) else None,
        mean=float(apart.mean()) if len(ours) else None,
        cosine=float(ours @ theirs) / norm if norm else None,
        agrees=not findings,
        finding="; ".join(findings) or "within the gates",
    )


def _chosen(
    name: StageName,
    compares: str,
    reference: Mapping[int, ImageResult],
    subject: Mapping[int, ImageResult],
    limits: Tolerances,
) -> Stage:
    pairing = Pairing(twin_iou=max(0.5, 1 - limits.iou_drift_p99), twin_score=limits.score_p99)
    matching = match(reference, subject, pairing)
    share = matching.matched_share()
    lost = sum(orphan.in_reference for orphan in matching.orphans)
    new = len(matching.orphans) - lost
    # A detection more than the candidates allow is a fault of choosing, even where a tie would excuse it.
    more = sum(matching.subject_count.values()) - sum(matching.reference_count.values())
    doubled = name in {"select", "merge"} and abs(more) > _excess(matching.reference_count, limits)
    agrees = not doubled and (share is None or share >= limits.matched_share)
    words = f"{lost} lost and {new} invented" + (f", {more:+d} detections in all" if doubled else "")
    return Stage(
        name=name,
        compares=compares,
        compared=sum(matching.reference_count.values()),
        max=None,
        mean=None,
        cosine=None,
        agrees=agrees,
        finding="within the gates" if agrees else words,
    )


def _excess(counts: Mapping[int, int], limits: Tolerances) -> float:
    """Return how many more or fewer detections ties may leave."""
    return max(1.0, (1 - limits.matched_share + 0.02) * sum(counts.values()))


def _by_tile(answers: Mapping[int, ImageResult]) -> dict[int, ImageResult]:
    return {key: ImageResult(answer.selected, answer.candidates) for key, answer in answers.items()}


def _ratios(aligned: _Aligned) -> Array:
    """Return the subject's score over the reference's, for each candidate. float [n]."""
    ratios: Array = aligned.subject.scores.astype(np.float64) / aligned.reference.scores
    return ratios


def _shifts(aligned: _Aligned) -> Array:
    """Return the displacement of box centers, right and down, pixels. float [n, 2]."""
    moved = aligned.subject.boxes.astype(np.float64) - aligned.reference.boxes
    shifts: Array = (moved[:, :2] + moved[:, 2:]) / 2
    return shifts


def _directed(values: Array, limit: float) -> bool:
    """Return whether values [n] have a common direction: a median beyond the limit and half their scatter."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return bool(abs(middle) > max(limit, (high - low) / 2))


def _has_factor(aligned: _Aligned, limits: Tolerances) -> bool:
    return _directed(_ratios(aligned) - 1, limits.score_factor)


def _has_shift(aligned: _Aligned, limits: Tolerances) -> bool:
    return any(_directed(axis, limits.shift_px) for axis in _shifts(aligned).T)


def _resampled(aligned: _Aligned, limits: Tolerances) -> bool:
    return (
        len(aligned) > 0
        and aligned.flips <= limits.class_flips
        and not _has_factor(aligned, limits)
        and _has_shift(aligned, limits)
    )


def _rounded(aligned: _Aligned, limits: Tolerances) -> bool:
    if not len(aligned) or _has_factor(aligned, limits) or _has_shift(aligned, limits):
        return False
    moved = (aligned.subject.scores != aligned.reference.scores) | (
        aligned.subject.boxes != aligned.reference.boxes
    ).any(axis=1)
    return bool(moved.mean() >= WIDESPREAD)


def _iou_of_pairs(ours: Array, theirs: Array) -> Array:
    """Return the IoU of each pair of boxes [n, 4]. float [n]."""
    low, high = np.maximum(ours[:, :2], theirs[:, :2]), np.minimum(ours[:, 2:], theirs[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    areas = box_areas(ours) + box_areas(theirs)
    return shared / np.maximum(areas - shared, 1e-9)

"""Compare oriented with upright detectors: average precision, and recall of ships that lie close to another.

    python benchmarks/oriented.py data.root=DIR --oriented A.safetensors [B …] --upright C.safetensors [D …]

Checkpoints are given in pairs of equal cost: the first oriented one belongs to the first upright one. A ship is close
if the gap between its outline and that of another is below half of its length; with --least-turn-deg 22.5, only ships
that are so far from both axes of the image count. With --only NAME, the objects and detections of other classes do
not exist. A detector has found a ship by one of three measures; in each, a
detection counts once, by falling score:

- oriented: IoU of oriented boxes of at least 0.5. An upright detection is the rectangle that it is.
- upright: IoU of the upright boxes around both of at least 0.5, a weaker demand for ships at an angle.
- place: the center of the detection is inside the ship's outline; the shape of boxes does not count.

The IoU threshold of non-maximum suppression is chosen for each detector on the validation split by its own kind of
boxes: by AP50, and by the recall of close ships at a precision of 0.9. Recall is that at the lowest score from which on
the precision of all ships of the test split is at least --precision. The interval of a difference is from 2,000 draws
of places (--per-place consecutive images), averaged over the pairs.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import shapely

from ifkd.compute.device import best_device
from ifkd.core.detections import Array, Detections, pairwise_iou
from ifkd.core.oriented_boxes import corners, envelopes
from ifkd.core.postprocess import nms
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.metrics import BoxKind, as_boxes, evaluate
from ifkd.data.oriented_metrics import object_outlines
from ifkd.data.splits import read_split
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.recipe.recipe import Recipe, locate_data
from ifkd.training.prediction import predict

Measure = Literal["oriented", "upright", "place"]
Rule = Literal["AP50", "recall of close ships"]
KINDS: tuple[BoxKind, ...] = get_args(BoxKind)
MEASURES: tuple[Measure, ...] = get_args(Measure)
RULES: tuple[Rule, ...] = get_args(Rule)
IOU_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
AGREEMENT = 0.5
DRAWS = 2000
CLOSE = 0.5
"""Gap to the nearest ship, in lengths, below which a ship is close."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is reported, and of which ships."""

    precisions: Sequence[float]
    per_place: int
    least_turn_deg: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Detections and ships of a split by one measure, each with the number of its image."""

    scores: Array
    correct: Array
    """bool, of each detection."""
    detection_image: Array
    ship_score: Array
    """Score of the detection that found a ship; -inf for none."""
    ship_close: Array
    """bool, of each ship."""
    ship_image: Array

    def recall(self, precision: float, *, images: Array | None = None) -> float:
        """Return the recall of close ships at a precision, NaN if there are none; `images` are drawn, and may recur."""
        times = np.ones(self.images, int) if images is None else np.bincount(images, minlength=self.images)
        order = np.argsort(-self.scores, kind="stable")
        weight = times[self.detection_image[order]]
        found, all_of_them = np.cumsum(weight * self.correct[order]), np.cumsum(weight)
        good = np.flatnonzero(found >= precision * np.maximum(all_of_them, 1))
        threshold = self.scores[order][good[-1]] if len(good) else np.inf
        ships = times[self.ship_image] * self.ship_close
        return float((ships * (self.ship_score >= threshold)).sum() / ships.sum()) if ships.any() else float("nan")

    @property
    def images(self) -> int:
        """Number of images."""
        return int(max(self.detection_image.max(initial=0), self.ship_image.max(initial=0))) + 1


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A detector and its detections before non-maximum suppression, by split and image id."""

    name: str
    oriented: bool
    validation: CocoDataset
    test: CocoDataset
    found: Mapping[str, Mapping[int, Detections]]
    limit: int
    """Most detections of an image."""

    def detections(self, split: str, iou_threshold: float) -> dict[int, Detections]:
        """Return the detections of a split."""
        kept = {key: nms(one, iou_threshold=iou_threshold) for key, one in self.found[split].items()}
        return {key: one.select(np.arange(min(len(one), self.limit))) for key, one in kept.items()}


def main() -> None:
    """Print the figures of each detector, and the differences of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="location of the data")
    parser.add_argument("--oriented", type=Path, nargs="+", required=True, metavar="CHECKPOINT")
    parser.add_argument("--upright", type=Path, nargs="+", required=True, metavar="CHECKPOINT")
    parser.add_argument("--precision", type=float, nargs="+", default=[0.9, 0.8])
    parser.add_argument("--least-turn-deg", type=float, default=0.0, metavar="D")
    parser.add_argument("--only", metavar="CLASS", help="the class of the ships, where there are others (default: all)")
    parser.add_argument("--per-place", type=int, default=5, help="images of a place of generated data (default: 5)")
    arguments = parser.parse_args()
    settings = Settings(arguments.precision, arguments.per_place, arguments.least_turn_deg)
    outcomes: dict[tuple[Rule, str], list[dict[Measure, Outcome]]] = defaultdict(list)
    for kind, paths in (("oriented", arguments.oriented), ("upright", arguments.upright)):
        for path in paths:
            candidate = read_candidate(path, arguments.overrides, arguments.only)
            for rule, value in choose_thresholds(candidate, settings).items():
                print(f"{path}: suppression {value:g}, the best by {rule} on the validation split")
                outcomes[rule, kind].append(report(candidate, value, settings))
    for rule, measure, precision in itertools.product(RULES, MEASURES, settings.precisions):
        pairs = zip(outcomes[rule, "oriented"], outcomes[rule, "upright"], strict=True)
        chosen = [(one[measure], other[measure]) for one, other in pairs]
        words = difference(chosen, precision, settings.per_place)
        print(f"oriented - upright, suppression by {rule}; {measure}, precision {precision:g}: {words}")


def read_candidate(path: Path, overrides: Sequence[str], only: str | None) -> Candidate:
    """Return a checkpoint's detections, of one class or of all, on the validation and test split before suppression."""
    checkpoint = load_checkpoint(path)
    recipe: Recipe = locate_data(checkpoint.meta.recipe, overrides)
    detector = build_from(checkpoint).to(best_device()).eval()
    splits = {name: read_split(recipe.data, name) for name in ("validation", "test")}
    limit = recipe.postprocess.max_detections
    everything = recipe.postprocess.model_copy(update={"iou_threshold": 1.0, "max_detections": 10_000})
    unfiltered = recipe.model_copy(update={"postprocess": everything})
    found = {name: dict(predict(detector, data, unfiltered)) for name, data in splits.items()}
    if only is not None:
        label = splits["test"].classes.index(only)
        splits = {name: of_class(data, label) for name, data in splits.items()}
        found = {
            name: {key: one.select(one.labels == label) for key, one in of_split.items()}
            for name, of_split in found.items()
        }
    return Candidate(str(path), checkpoint.meta.detector.oriented, splits["validation"], splits["test"], found, limit)


def of_class(dataset: CocoDataset, label: int) -> CocoDataset:
    """Return a data set with the objects of one class."""
    images = []
    for image in dataset.images:
        kept = image.labels == label
        oriented = None if image.oriented is None else image.oriented[kept]
        rows = {"boxes": image.boxes[kept], "labels": image.labels[kept], "ignore": image.ignore[kept]}
        images.append(replace(image, **rows, oriented=oriented))
    return replace(dataset, images=tuple(images))


def choose_thresholds(candidate: Candidate, settings: Settings) -> dict[Rule, float]:
    """Return the best IoU threshold of suppression on the validation split by each rule, and print all."""
    measure: Measure = "oriented" if candidate.oriented else "upright"
    scores: dict[Rule, dict[float, float]] = {rule: {} for rule in RULES}
    for value in IOU_THRESHOLDS:
        found = candidate.detections("validation", value)
        metrics = evaluate(candidate.validation, found)
        recall = outcome(candidate.validation, found, measure, settings).recall(0.9)
        scores["AP50"][value], scores["recall of close ships"][value] = metrics.ap50 or 0.0, recall
        values = f"AP50 {metrics.ap50:.3f} AP75 {metrics.ap75:.3f}, recall of close ships {recall:.3f}"
        print(f"{candidate.name}: validation, suppression {value:g}: {values}")
    return {rule: max(of_rule, key=lambda value: of_rule[value]) for rule, of_rule in scores.items()}


def report(candidate: Candidate, iou_threshold: float, settings: Settings) -> dict[Measure, Outcome]:
    """Print the figures of a detector on the test split; return its outcomes."""
    found = candidate.detections("test", iou_threshold)
    for boxes in KINDS:
        metrics = evaluate(candidate.test, found, boxes=boxes)
        print(f"    {boxes} boxes: mAP {metrics.mean_ap:.3f} AP50 {metrics.ap50:.3f} AP75 {metrics.ap75:.3f}")
    outcomes = {measure: outcome(candidate.test, found, measure, settings) for measure in MEASURES}
    for measure, one in outcomes.items():
        recalls = ", ".join(f"{one.recall(value):.3f} at precision {value:g}" for value in settings.precisions)
        close = f"{one.ship_close.sum()} close ships of {len(one.ship_close)}"
        print(f"    {measure}: recall of {close}: {recalls}")
    return outcomes


def outcome(dataset: CocoDataset, found: Mapping[int, Detections], measure: Measure, settings: Settings) -> Outcome:
    """Return which detections are correct and which ships are found, by falling score.

    Detections of ignored ships count neither way.
    """
    parts: list[list[Array]] = [[], [], [], [], [], []]
    for number, image in enumerate(dataset.images):
        detections = found[image.id].in_canonical_order()
        agreement = agreements(detections, image, measure)
        ship_score = np.full(len(image.boxes), -np.inf)
        correct, counted = np.zeros(len(detections), bool), np.ones(len(detections), bool)
        for row, score in enumerate(detections.scores.tolist()):
            free = np.where(np.isinf(ship_score) & ~image.ignore, agreement[row], 0.0)
            if free.max(initial=0.0) >= AGREEMENT:
                correct[row], ship_score[free.argmax()] = True, score
            else:
                counted[row] = agreement[row][image.ignore].max(initial=0.0) < AGREEMENT
        numbers = (np.full(counted.sum(), number), np.full((~image.ignore).sum(), number))
        ships = (ship_score[~image.ignore], close_ships(image, settings.least_turn_deg)[~image.ignore])
        values = (detections.scores[counted], correct[counted], numbers[0], *ships, numbers[1])
        for part, value in zip(parts, values, strict=True):
            part.append(value)
    return Outcome(*(np.concatenate(part) for part in parts))


def agreements(detections: Detections, image: LabeledImage, measure: Measure) -> Array:
    """Return how well detections agree with ships [n, m]: the IoU, or for `place` 1 and 0."""
    ships = object_outlines(image)
    if measure == "upright":
        return pairwise_iou(detections.boxes, envelopes(ships))
    if measure == "oriented":
        return pairwise_iou(as_boxes("oriented", detections).outlines, ships)
    outlines, centers = detections.outlines, detections.outlines[:, :2]
    if detections.oriented is None:
        centers = (outlines[:, :2] + outlines[:, 2:]) / 2
    inside = shapely.contains_xy(polygons(ships)[None], centers[:, None, 0], centers[:, None, 1])
    return np.asarray(inside).reshape(len(detections), len(ships)).astype(float)


def close_ships(image: LabeledImage, least_turn_deg: float) -> Array:
    """Return which ships are closer to another than CLOSE of their length, and so far from both axes, bool [n]."""
    ships = object_outlines(image)
    shapes = polygons(ships)
    gaps = shapely.distance(shapes[:, None], shapes[None])
    np.fill_diagonal(gaps, np.inf)
    turn = np.minimum(ships[:, 4] % 90, 90 - ships[:, 4] % 90)
    return np.asarray((gaps < CLOSE * ships[:, 2:3]).any(axis=1) & (turn >= least_turn_deg))


def polygons(oriented: Array) -> Array:
    """Return boxes [n, 5] as polygons [n]."""
    return np.asarray(shapely.polygons(corners(oriented)))


def difference(pairs: Sequence[tuple[Outcome, Outcome]], precision: float, per_place: int) -> str:
    """Return the difference of the recall of close ships, a mean over pairs, with its 95 % interval, in words."""
    images = max(one.images for pair in pairs for one in pair)
    places = np.split(np.arange(images), np.arange(per_place, images, per_place))
    random = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        drawn = np.concatenate([places[index] for index in random.integers(len(places), size=len(places))])
        draws.append(np.mean([a.recall(precision, images=drawn) - b.recall(precision, images=drawn) for a, b in pairs]))
    each = [a.recall(precision) - b.recall(precision) for a, b in pairs]
    low, high = np.nanpercentile(draws, [2.5, 97.5])  # without draws that have no close ship
    words = ", ".join(f"{100 * value:+.1f}" for value in each)
    interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}; by pair {words}"
    return f"{100 * np.mean(each):+.1f} points of recall of close ships, {interval}"


if __name__ == "__main__":
    main()

"""Compare a search with the screen to a search of all tiles, by the same engine in the same scene."""

import statistics

import numpy as np

from deploy.scene.merge.overlaps import pairs_between
from deploy.scene.operational_figures import SIZE_LIMITS_PX, SIZES
from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.executor import SceneExecutor
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.screen.audit import ScreeningRecord
from deploy.scene.settings import DetectionSettings
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas
from ifkd.data.intervals import Interval, wilson_interval

MIN_IOU = 0.5


class SearchRecall(Schema):
    """Detections of the search of all tiles that the search with the screen has, too."""

    detections: int
    """Of the search of all tiles."""
    found: int
    recall: float | None
    """None without detections."""
    interval: Interval | None
    """95 % interval, if detections do not depend on each other."""

    @classmethod
    def of(cls, found: Array) -> "SearchRecall":
        """Return the recall of detections that are found or not, bool [n]."""
        count = int(found.sum())
        recall = count / len(found) if len(found) else None
        return cls(detections=len(found), found=count, recall=recall, interval=wilson_interval(count, len(found)))


class ScreenSearch(Schema):
    """A search with the screen of a bundle beside one of all tiles."""

    scene: str
    size_px: tuple[int, int]
    """(height, width)."""
    engine: str
    """Backend and precision."""
    screening: ScreeningRecord
    total: SearchRecall
    per_class: dict[str, SearchRecall]
    per_size: dict[str, SearchRecall]
    """By the square root of the box's area: small, medium or large."""
    size_limits_px: tuple[float, float] = SIZE_LIMITS_PX
    min_iou: float = MIN_IOU
    """Least IoU with a detection of the same class that counts as found."""
    full_seconds: tuple[float, ...]
    """Durations of the search of all tiles, one for each turn."""
    screen_seconds: tuple[float, ...]
    """Durations of the search with the screen, in turns with the other."""

    @property
    def speedup(self) -> float:
        """Ratio of the durations of the same turn, the median."""
        return statistics.median(full / fast for full, fast in zip(self.full_seconds, self.screen_seconds, strict=True))

    @property
    def megapixels_per_second(self) -> tuple[float, float]:
        """Throughput without and with the screen, by the median durations."""
        pixels = self.size_px[0] * self.size_px[1] / 1e6
        return pixels / statistics.median(self.full_seconds), pixels / statistics.median(self.screen_seconds)

    def summary(self) -> str:
        """Return the comparison in words."""
        without, beside = self.megapixels_per_second
        total, skipped = self.total, self.screening.skipped
        recall = "no detections" if total.recall is None else f"{total.recall:.2%} of {total.detections} detections"
        return (
            f"{self.engine} with the screen on {self.scene}: {recall}, {self.speedup:.2f} times as fast "
            f"({without:.1f} to {beside:.1f} million pixels per second), {skipped} tiles skipped, "
            f"{self.screening.passed} passed"
        )


def compare_searches(
    executor: SceneExecutor, scene: Scene, settings: DetectionSettings, *, rounds: int = 1
) -> ScreenSearch:
    """Search a scene without and with the screen of the settings, in turns.

    Raises:
        SceneError: The scene is unreadable.
    """
    assert settings.screen is not None
    searches = [settings.model_copy(update={"screen": None}), settings]
    turns = [[detect_scene(executor, scene, one, show_progress=True) for one in searches] for _ in range(rounds)]
    full, screened = turns[0]
    assert screened.screening is not None
    found = _found(full.detections, screened.detections)
    sizes = np.searchsorted(SIZE_LIMITS_PX, np.sqrt(box_areas(full.detections.boxes)), side="right")
    labels = full.detections.labels
    return ScreenSearch(
        scene=scene.info.name,
        size_px=scene.size,
        engine=f"{executor.info.backend} {executor.info.precision}",
        screening=screened.screening.record,
        total=SearchRecall.of(found),
        per_class={name: SearchRecall.of(found[labels == number]) for number, name in enumerate(full.classes)},
        per_size={name: SearchRecall.of(found[sizes == number]) for number, name in enumerate(SIZES)},
        full_seconds=tuple(_seconds(full) for full, _ in turns),
        screen_seconds=tuple(_seconds(screened) for _, screened in turns),
    )


def _seconds(result: SceneResult) -> float:
    return round(result.seconds["total"], 6)


def _found(full: Detections, screened: Detections) -> Array:
    """Return which detections have one of the same class in the other search, bool [n]."""
    pairs = pairs_between(full.boxes, screened.boxes)
    union = box_areas(full.boxes)[pairs.first] + box_areas(screened.boxes)[pairs.second] - pairs.intersection
    same = (full.labels[pairs.first] == screened.labels[pairs.second]) & (pairs.intersection > MIN_IOU * union)
    found = np.zeros(len(full), bool)
    found[pairs.first[same]] = True
    return found

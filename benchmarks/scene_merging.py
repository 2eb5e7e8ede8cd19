"""Time of merging many candidates, ours and that of the rivals, for benchmarks/scenes.py."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from figure import Figure
from scene_rivals import RIVAL_MERGES

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from ifkd.core.detections import Detections
from ifkd.core.oriented_boxes import envelopes, from_upright
from ifkd.core.tiling import TileGrid

ROUNDS = 3


def seconds_of(work: Callable[[], Any], *, rounds: int = ROUNDS) -> float:
    """Return the median time of some calls, seconds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def merging() -> list[Figure]:
    """Return the time of merging many candidates, and that of the rivals' merges on fewer."""
    figures = []
    merge_settings = MergeSettings(class_agnostic_iou=0.8)
    taken = {}
    for n in (100_000, 1_000_000):
        found = many_candidates(n)
        taken[n] = seconds_of(lambda found=found: merge(found, merge_settings))
        goal = 5.0 if n == 1_000_000 else None
        figures.append(Figure("merge", f"{len(found)} candidates, ours", taken[n], "s", at_most=goal))
    figures.append(Figure("merge", "ten times the input", taken[1_000_000] / taken[100_000], "x", at_most=13.0))
    turned = many_oriented_candidates(100_000)
    start = time.process_time()
    merge(turned, merge_settings)
    cpu_s = time.process_time() - start
    figures.append(Figure("merge", f"{len(turned)} oriented candidates, ours", cpu_s, "CPU s", at_most=3.0))
    few = many_candidates(33_000)
    figures.append(Figure("merge", f"{len(few)} candidates, ours", seconds_of(lambda: merge(few, merge_settings)), "s"))
    classes = tuple(map(str, range(7)))
    for name, rival in RIVAL_MERGES.items():
        if not name.startswith("SAHI"):  # supervision compares all pairs, which takes tens of gigabytes here
            continue
        slow = seconds_of(lambda rival=rival: rival(few.detections, classes), rounds=1)
        figures.append(Figure("merge", f"{len(few)} candidates, {name}", slow, "s"))
    return figures


def many_candidates(n: int) -> TileDetections:
    """Return about `n` detections of seven classes, as in overlapping tiles of a crowded scene."""
    rng = np.random.default_rng(0)
    objects = round(n / 1.65)
    side = int(np.sqrt(objects * 2400))
    grid = TileGrid((side, side), (512, 512), 96)
    centers = rng.uniform(0, side, (objects, 2))
    long, wide = rng.uniform(8, 60, objects), rng.uniform(6, 24, objects)
    across = rng.random(objects) < 0.5
    sides = np.where(across[:, None], np.stack([long, wide], axis=1), np.stack([wide, long], axis=1))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).clip(0, side)
    labels = rng.integers(0, 7, objects)
    starts = np.array(grid.lefts)
    parts = []
    for row, top in enumerate(grid.tops):
        here = (boxes[:, 3] > top) & (boxes[:, 1] < top + 512)
        first = np.searchsorted(starts + 512, boxes[here, 0], side="right")
        count = np.searchsorted(starts, boxes[here, 2], side="left") - first
        own = np.repeat(np.flatnonzero(here), count)
        column = np.repeat(first, count) + np.arange(len(own)) - np.repeat(np.cumsum(count) - count, count)
        low = np.stack([starts[column], np.full(len(own), top)], axis=1)
        seen = boxes[own] + rng.normal(0, 1, (len(own), 4))
        seen = np.concatenate([np.maximum(seen[:, :2], low), np.minimum(seen[:, 2:], low + 512)], axis=1)
        good = (seen[:, 2:] - seen[:, :2] > 2).all(axis=1)
        bounds = np.concatenate(
            [np.where(low > 0, low, -np.inf), np.where(low + 512 < side, low + 512, np.inf)], axis=1
        )
        scores = rng.uniform(0.3, 1, len(own)).astype(np.float32)
        found = Detections(seen[good].astype(np.float32), scores[good], labels[own[good]])
        parts.append(TileDetections(found, (row * len(starts) + column[good]).astype(np.int64), bounds[good]))
    return TileDetections.concatenate(parts)


def many_oriented_candidates(n: int) -> TileDetections:
    """Return `many_candidates` as oriented boxes, each as all tiles see it, with directions that change slowly."""
    found = many_candidates(n)
    detections, bounds = found.detections, found.bounds.astype(np.float32)
    oriented = from_upright(detections.boxes)
    oriented[:, 4] = oriented[:, :2].sum(axis=1) / 10.0 % 180.0
    around = envelopes(oriented)
    boxes = np.concatenate([np.maximum(around[:, :2], bounds[:, :2]), np.minimum(around[:, 2:], bounds[:, 2:])], axis=1)
    turned = Detections(boxes, detections.scores, detections.labels, oriented)
    return TileDetections(turned, found.tiles, found.bounds)

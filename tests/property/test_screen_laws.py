"""Laws of a screened search: threshold 0 is the full search, a higher one adds nothing and loses what is counted."""

import math
import zlib

import numpy as np
import pytest
from fakes.fake_scene import CountingEngine, bright_rectangles, sea
from fakes.fake_screen import BrightnessScreen
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.run.screening import layout_for
from deploy.scene.screen.decimated_scene import DecimatedScene
from deploy.scene.settings import DetectionSettings, ScreenSettings, grid_for
from ifkd.core.detections import Detections, pairwise_iou
from ifkd.core.postprocess import PostprocessConfig
from ifkd.imagery.objectness import kept_up_to

TILE, STRIDE = 64, 4
SIZE = (150, 200)


class HashScreen:
    """An arbitrary screen: each cell has a value that depends on all its pixels."""

    def objectness(self, pixels):
        cells = pixels.astype(np.uint32).sum(axis=2).reshape(pixels.shape[0] // STRIDE, STRIDE, -1, STRIDE)
        sums = (cells * np.arange(1, 1 + STRIDE)[:, None, None]).sum(axis=(1, 3))
        return ((sums * 2654435761) % 1009 / 1009).astype(np.float32)


def arbitrary_detections(tile):
    """Return boxes that depend on all pixels of a tile, many of them at its edges and over each other."""
    random = np.random.default_rng(zlib.crc32(tile.tobytes()))
    low = random.integers(0, TILE - 4, (3, 2))
    high = np.minimum(low + random.integers(3, 30, (3, 2)), TILE)
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    return Detections(boxes, random.uniform(0.3, 1, 3).astype(np.float32), random.integers(0, 2, 3))


def rules(threshold, *, method="border", auto=False, audit=0.3, agnostic=1.0, overlap=20, margin=20.0):
    screen = None
    if threshold is not None:
        screen = ScreenSettings(
            threshold=threshold,
            auto=auto,
            scale=0.5,
            stride=STRIDE,
            context_px=4,
            margin_px=margin,
            audit_fraction=audit,
        )
    return DetectionSettings(
        scale=1.0,
        overlap_px=overlap,
        postprocess=PostprocessConfig(score_threshold=0.2, iou_threshold=0.5, max_detections=50),
        merge=MergeSettings(method=method, class_agnostic_iou=agnostic),
        screen=screen,
    )


def search(pixels, threshold, *, network=HashScreen, find=arbitrary_detections, batch=None, **options):
    with Scene(pixels) as scene:
        executor = LocalExecutor(CountingEngine(find=find), network)
        return detect_scene(executor, scene, rules(threshold, **options), batch=batch)


def ordered_rows(result):
    found = result.detections
    columns = (found.boxes, found.scores[:, None], found.labels[:, None], result.tiles[:, None])
    return list(map(tuple, np.concatenate(columns, axis=1, dtype=np.float64).tolist()))


def rows_of(result):
    return set(ordered_rows(result))


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def assert_same(result, expected):
    np.testing.assert_array_equal(result.detections.boxes, expected.detections.boxes)
    np.testing.assert_array_equal(result.detections.scores, expected.detections.scores)
    np.testing.assert_array_equal(result.detections.labels, expected.detections.labels)
    np.testing.assert_array_equal(result.tiles, expected.tiles)


@settings(max_examples=8, deadline=None)
@given(method=st.sampled_from(["border", "nms", "nmm", "greedy_nmm"]), seed=st.integers(0, 2**32 - 1))
def test_a_higher_threshold_adds_no_detection(method, seed):
    pixels = noise(seed)
    full = search(pixels, None, method=method, agnostic=0.6)
    assert_same(search(pixels, 0.0, method=method, agnostic=0.6), full)
    found, skipped = rows_of(full), 0
    for threshold in (0.97, 0.99, 0.994, 0.997, 1.0):
        result = search(pixels, threshold, method=method, agnostic=0.6)
        assert rows_of(result) <= found
        assert result.screening.record.skipped >= skipped
        found, skipped = rows_of(result), result.screening.record.skipped
    assert skipped > 0


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 4), audit=st.sampled_from([0.0, 0.5, 1.0]))
def test_neither_the_batch_nor_the_audit_changes_the_detections(seed, batch, audit):
    pixels = noise(seed)
    expected = search(pixels, 0.992)
    result = search(pixels, 0.992, batch=batch, audit=audit)
    assert_same(result, expected)
    assert result.screening.record.skipped == expected.screening.record.skipped
    again = search(pixels, 0.992, batch=batch, audit=audit).screening
    np.testing.assert_array_equal(again.selection.audited, result.screening.selection.audited)
    assert again.record == result.screening.record


@pytest.mark.parametrize("method", ["border", "nms"])
@pytest.mark.parametrize(
    "tiles", [{}, {"margin": 10.0}, {"margin": 10.0, "overlap": 4}, {"margin": 16.0, "overlap": 30}]
)
def test_a_screened_search_loses_at_most_what_the_calibration_counts(method, tiles):
    """Of the boxes of all tiles, and thus through any chain of overlaps, whatever the margin."""
    kept = lost = 0
    for seed in range(8):
        pixels = noise_with_blocks(seed)
        full = search(pixels, None, method=method, agnostic=0.6, **tiles)
        found, values = kept_values(pixels, tiles)
        # A detection may be the hull of several boxes.
        counted = np.where(pairwise_iou(full.detections.boxes, found) > 0, values, 0.0).max(axis=1)
        for threshold in (0.2, 0.5, 0.9):
            screened = search(pixels, threshold, network=BlockScreen, method=method, agnostic=0.6, **tiles)
            is_lost = np.array([row not in rows_of(screened) for row in ordered_rows(full)])
            assert (counted[is_lost] < threshold).all()
            kept += int((counted >= threshold).sum())
            lost += int(is_lost.sum())
    assert kept > 20
    assert lost > 40


class BlockScreen:
    """A screen that finds what is bright in the third channel."""

    def objectness(self, pixels):
        cells = pixels[..., 2].reshape(pixels.shape[0] // STRIDE, STRIDE, -1, STRIDE)
        return cells.mean(axis=(1, 3)).astype(np.float32) / np.float32(255)


def noise_with_blocks(seed):
    """Return noise whose third channel is black but for some bright blocks."""
    pixels, random = noise(seed), np.random.default_rng(seed)
    pixels[..., 2] = 0
    for _ in range(3):
        top, left = random.integers(0, SIZE[0]), random.integers(0, SIZE[1])
        pixels[top : top + random.integers(8, 60), left : left + random.integers(8, 60), 2] = 255
    return pixels


def kept_values(pixels, tiles):
    """Return the boxes of all tiles, and the threshold up to which the calibration would count each as kept."""
    with Scene(pixels) as scene:
        options = rules(0.5, **tiles)
        layout = layout_for(grid_for(scene.size, (TILE, TILE), options), options, None)
        boxes = []
        for window in layout.grid:
            tile = np.ascontiguousarray(scene.read(window).pixels.transpose(2, 0, 1))
            boxes.append(
                arbitrary_detections(tile).translated(dx=float(window.left), dy=float(window.top)).clipped(SIZE).boxes
            )
        all_rows = (0, math.ceil(SIZE[0] / layout.cell_px))
        with DecimatedScene(scene, layout.factor) as decimated:
            cells = BlockScreen().objectness(decimated.read(layout.pixels_of(all_rows, (0, layout.columns))).pixels)
    found = np.concatenate(boxes)
    return found, kept_up_to(cells, found, cell_px=layout.cell_px, margin_px=options.screen.margin_px)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_full_audit_knows_what_is_lost_and_half_an_audit_has_it_in_its_interval(data):
    places = [(x, y) for x in range(8, 180, 40) for y in range(8, 140, 40)]
    chosen = data.draw(st.lists(st.sampled_from(places), unique=True, min_size=1, max_size=12))
    shades = data.draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen)))
    pixels = sea(*SIZE, [(x, y, x + 12, y + 10, int(shade)) for (x, y), shade in zip(chosen, shades, strict=True)])
    options = {"network": BrightnessScreen, "find": bright_rectangles}
    full = search(pixels, None, **options)
    result = search(pixels, 0.8, audit=1.0, **options)  # the screen sees bright objects only
    assert rows_of(result) <= rows_of(full)
    audit, lost = result.screening.record.audit, len(full.detections) - len(result.detections)
    if audit is not None:
        assert (audit.lost, audit.lost_interval) == (lost, (lost, lost))
        assert audit.lost_fraction == pytest.approx(lost / len(full.detections))
        half = search(pixels, 0.8, audit=0.5, **options).screening.record.audit
        assert half.lost_interval[0] <= half.lost <= half.lost_interval[1]
        assert half.tiles == -(-audit.tiles // 2)

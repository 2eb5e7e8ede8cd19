"""Row ranges that run alone and in any order: the same batches, the same objects."""

import numpy as np
import pytest
from fakes.fake_scene import CountingEngine, write_tif
from fakes.ray_engines import noise
from hypothesis import given
from hypothesis import strategies as st

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.run.row_ranges import BATCHES_PER_RANGE, join_adjacent, rows_per_range, unfinished_ranges
from deploy.scene.run.run_rows import RowPlan, run_rows
from deploy.scene.settings import DetectionSettings, grid_for
from ifkd.core.postprocess import PostprocessConfig

SETTINGS = DetectionSettings(
    scale=1.0, overlap_px=20, postprocess=PostprocessConfig(score_threshold=0.3), merge=MergeSettings()
)


@pytest.fixture
def scene(tmp_path):
    pixels = noise(0, 900, 260)
    pixels[100:400, 100:] = 0  # some tiles are empty, so that batches and rows never coincide
    with Scene(write_tif(tmp_path / "scene.tif", pixels, nodata=0)) as opened:
        yield opened


def plan_of(scene, batch):
    return RowPlan(grid_for(scene.size, (64, 64), SETTINGS), (64, 64), SETTINGS, batch, None)


def digests(engine):
    return sorted(tiles.tobytes() for tiles in engine.batches)


def assert_same(found, result):
    np.testing.assert_array_equal(found.detections.boxes, result.detections.boxes)
    np.testing.assert_array_equal(found.detections.scores, result.detections.scores)
    np.testing.assert_array_equal(found.tiles, result.tiles)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_row_ranges_in_any_order_give_the_batches_and_objects_of_one_run(scene, tmp_path, batch):
    whole = CountingEngine()
    result = detect_scene(whole, scene, SETTINGS, batch=batch)
    assert len(result.detections) > 4
    plan = plan_of(scene, batch)
    row_ranges = list(unfinished_ranges(len(plan.grid.tops), plan.columns, batch=batch, processed={}))
    assert len(row_ranges) > 2
    engine = CountingEngine()
    with RowJournal(tmp_path / "journal", {}) as journal:
        assembly = Assembly(plan.grid, SETTINGS, journal)
        for number in np.random.default_rng(batch).permutation(len(row_ranges)):
            run_rows(engine, scene, plan, row_ranges[number], put=assembly.put)
        assert_same(assembly.finish(None), result)
    assert digests(engine) == digests(whole)
    assert (assembly.empty, assembly.unreadable) == (result.empty, list(result.unreadable))


def test_one_process_resumes_from_a_journal_with_gaps(scene, tmp_path):
    whole = CountingEngine()
    result = detect_scene(whole, scene, SETTINGS, batch=3)
    plan = plan_of(scene, 3)
    row_ranges = list(unfinished_ranges(len(plan.grid.tops), plan.columns, batch=3, processed={}))
    early = CountingEngine()
    with RowJournal(tmp_path / "journal", {}) as journal:
        assembly = Assembly(plan.grid, SETTINGS, journal)
        for row_range in (row_ranges[2], row_ranges[1]):
            run_rows(early, scene, plan, row_range, put=assembly.put)
    late = CountingEngine()
    with RowJournal(tmp_path / "journal", {}) as journal:
        rest = detect_scene(late, scene, SETTINGS, batch=3, journal=journal)
    assert rest.resumed_rows == sum(one.stop_row - one.read_row for one in row_ranges[1:3])
    assert sorted(digests(early) + digests(late)) == digests(whole)
    np.testing.assert_array_equal(rest.detections.boxes, result.detections.boxes)


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 40),
    batch=st.integers(1, 8),
    data=st.data(),
)
def test_what_is_unfinished_and_what_is_done_are_all_rows_once(rows, columns, batch, data):
    height = rows_per_range(columns, batch)
    assert height * columns >= BATCHES_PER_RANGE * batch > (height - 1) * columns
    processed = {}
    for top in range(0, rows, height):  # of each band, some rows from its top
        stop = min(top + height, rows)
        for row in range(top, data.draw(st.integers(top, stop))):
            processed[row] = data.draw(st.integers(0, columns))
    row_ranges = list(unfinished_ranges(rows, columns, batch=batch, processed=processed))
    fresh = [row for one in row_ranges for row in range(one.first_row, one.stop_row)]
    assert sorted([*fresh, *processed]) == list(range(rows))
    for one in row_ranges:
        band = one.first_row // height
        assert one.read_row // height == (one.stop_row - 1) // height == band
        above = sum(processed[row] for row in range(one.read_row, one.first_row))
        whole = sum(processed[row] for row in range(band * height, one.first_row))
        # What is read again fills up the batch that the first new tile falls into, and nothing more.
        assert above - one.skip_tiles == whole % batch
        assert one.read_row == one.first_row or one.skip_tiles < processed[one.read_row]
    together = list(join_adjacent(row_ranges))
    assert [row for one in together for row in range(one.first_row, one.stop_row)] == fresh

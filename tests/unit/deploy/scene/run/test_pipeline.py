import re
import threading

import numpy as np
import pytest
from fakes.fake_scene import (
    CLASSES,
    CountingEngine,
    as_set,
    bright_rectangles,
    bright_rectangles_of_one_class,
    sea,
    write_bundle,
    write_tif,
)

import deploy
from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene
from deploy.scene.run.pipeline import detect, detect_scene
from deploy.scene.run.prefetch import Stopwatch
from deploy.scene.settings import DetectionSettings, grid_for, settings_for, tile_for
from ifkd.core.detections import Detections
from ifkd.core.errors import BundleError, SceneError, UsageError
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid
from ifkd.imagery.image_files import resize

OBJECTS = [
    (5, 5, 17, 15, 0),
    (50, 40, 68, 52, 1),  # across two tiles, whole in the second
    (120, 118, 140, 130, 0),  # on a crossing
    (40, 100, 110, 108, 1),  # longer than the overlap
    (190, 160, 200, 170, 0),  # at the scene's corner
]


def rules(*, scale=1.0, overlap=20, strict=False, **merge):
    return DetectionSettings(
        scale=scale,
        overlap_px=overlap,
        postprocess=PostprocessConfig(score_threshold=0.3, iou_threshold=0.5, max_detections=50),
        merge=MergeSettings(**merge),
        strict=strict,
    )


@pytest.fixture
def scene():
    with Scene(sea(170, 200, OBJECTS)) as opened:
        yield opened


def test_every_object_is_found_once_and_whole(scene):
    result = detect_scene(CountingEngine(), scene, rules())
    assert as_set(result.detections) == set(OBJECTS)
    assert len(result.detections) == len(OBJECTS)
    assert result.counts() == {"cargo": 3, "tanker": 2}
    assert (result.empty, result.unreadable) == (0, ())
    assert result.detections.boxes.dtype == np.float32


def test_tiled_detection_equals_detection_of_the_whole_scene(scene):
    tiled = detect_scene(CountingEngine(), scene, rules())
    untiled = detect_scene(CountingEngine(tile=256), scene, rules())
    assert len(untiled.grid) == 1
    assert as_set(tiled.detections) == as_set(untiled.detections)


def test_a_scene_gives_the_same_result_with_tiles_of_another_size(scene):
    usual = detect_scene(CountingEngine(), scene, rules())
    engine = CountingEngine(sides=(32, 128))
    larger = detect_scene(engine, scene, rules().model_copy(update={"tile_px": (128, 96)}))
    assert {tiles.shape[2:] for tiles in engine.batches} == {(128, 96)}
    assert larger.grid.tile_px == (128, 96)
    assert as_set(larger.detections) == as_set(usual.detections)


def test_tiles_are_cut_down_to_a_scene_they_would_reach_beyond_where_the_engine_takes_it():
    with Scene(sea(40, 200, [(5, 5, 17, 15, 0), (50, 20, 68, 36, 1)])) as narrow:
        engine, fixed = CountingEngine(sides=(32, 128)), CountingEngine()
        found = [detect_scene(one, narrow, rules()) for one in (engine, fixed)]
    assert {tiles.shape[2:] for tiles in engine.batches} == {(64, 64)}
    assert as_set(found[0].detections) == as_set(found[1].detections)
    sizes = engine.info.sizes
    assert tile_for((30, 200), sizes, rules()) == (32, 64)
    assert tile_for((33, 32), sizes, rules()) == (64, 32)
    assert tile_for((30, 30), sizes, rules(overlap=40)) == (64, 64), "never as small as the overlap"
    assert tile_for((30, 30), sizes, rules(scale=0.4)) == (32, 32)
    assert tile_for((30, 30), sizes, rules(scale=0.3)) == (64, 64), "32 / 0.3 is no whole number of pixels"
    assert tile_for((30, 30), fixed.info.sizes, rules()) == (64, 64)


def test_a_tile_is_chosen_among_those_the_bundle_takes(tmp_path):
    several = write_bundle(tmp_path / "a", sides=[32, 128]).manifest
    assert settings_for(several, tile_px=96).tile_px == (96, 96)
    assert settings_for(several).tile_px is None
    with pytest.raises(UsageError, match=r"got 80 x 80 px, expected sides of 32 to 128 px"):
        settings_for(several, tile_px=80)
    with pytest.raises(UsageError, match=r"got 96 x 96 px, expected 64 x 64 px .*tile_sides_px="):
        settings_for(write_bundle(tmp_path / "b").manifest, tile_px=96)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, None])
def test_the_batch_changes_nothing_and_runs_across_rows(scene, batch):
    engine = CountingEngine()
    result = detect_scene(engine, scene, rules(), batch=batch)
    reference = detect_scene(CountingEngine(), scene, rules(), batch=1)
    np.testing.assert_array_equal(result.detections.boxes, reference.detections.boxes)
    np.testing.assert_array_equal(result.detections.scores, reference.detections.scores)
    np.testing.assert_array_equal(result.tiles, reference.tiles)
    sizes = [len(tiles) for tiles in engine.batches]
    assert set(sizes[:-1]) <= {batch or 4}
    assert sum(sizes) == len(result.grid)


class AheadEngine(CountingEngine):
    """A fake engine that fetches a batch before it yields the output of the previous one, like an engine on a GPU."""

    def infer_each(self, batches):
        waiting = None
        for tiles in batches:
            if waiting is not None:
                yield waiting
            waiting = self.infer(tiles)
        if waiting is not None:
            yield waiting


def test_an_engine_that_takes_the_next_batch_first_gives_the_same_result(tmp_path):
    pixels = sea(170, 200, OBJECTS)
    pixels[:, 70:] = 0  # tiles without data lie between the batches
    path = write_tif(tmp_path / "s.tif", pixels, nodata=0)
    with Scene(path) as scene:
        plain, ahead = (detect_scene(kind(), scene, rules(), batch=3) for kind in (CountingEngine, AheadEngine))
    assert (plain.empty, len(plain.detections)) == (12, 3)
    np.testing.assert_array_equal(ahead.detections.boxes, plain.detections.boxes)
    np.testing.assert_array_equal(ahead.tiles, plain.tiles)
    assert ahead.empty == plain.empty


def test_waiting_for_tiles_is_no_time_of_the_engine(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("deploy.scene.run.prefetch.time.perf_counter", lambda: clock[0])
    watch = Stopwatch()

    def batches():
        for _ in range(3):
            with watch.excluded("infer"):
                clock[0] += 10.0
            yield

    def engine():
        for _ in batches():
            clock[0] += 1.0
            yield

    assert len(list(watch.waits(engine(), "infer"))) == 3
    assert watch.seconds == {"infer": 3.0}


def test_engines_see_the_scene_at_their_own_scale(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (170, 300, 3)).astype(np.uint8)
    engine = CountingEngine(find=lambda _: Detections.empty())
    with Scene(write_tif(tmp_path / "s.tif", pixels)) as scene:
        result = detect_scene(engine, scene, rules(scale=0.4, overlap=10), batch=1)
    assert result.grid == TileGrid((170, 300), (160, 160), 25, (5, 5))
    whole = resize(pixels, (68, 120)).transpose(2, 0, 1)
    for window, batch in zip(result.grid, engine.batches, strict=True):
        top, left = window.top * 2 // 5, window.left * 2 // 5
        np.testing.assert_array_equal(batch[0], whole[:, top : top + 64, left : left + 64])


@pytest.mark.parametrize("scale", [0.4, 0.5, 2.0])
def test_boxes_come_back_in_scene_pixels(scale):
    factor = 1 / scale
    objects = [(*(round(v * factor / 5) * 5 for v in box[:4]), 0) for box in OBJECTS]
    with Scene(sea(round(170 * factor), round(200 * factor), objects)) as scene:
        result = detect_scene(
            CountingEngine(find=bright_rectangles_of_one_class), scene, rules(scale=scale, edge_tolerance_px=2 / scale)
        )
    assert len(result.detections) == len(OBJECTS)
    for *box, _ in objects:
        assert np.abs(result.detections.boxes - box).max(axis=1).min() <= 1.5 / scale


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (20, 30), (64, 64), (65, 64)])
def test_small_scenes(size):
    with Scene(sea(*size, [])) as scene:
        result = detect_scene(CountingEngine(), scene, rules())
    assert len(result.detections) == 0
    assert (result.to_coco(), result.tile_names()) == ([], [])
    with Scene(np.full((*size, 3), 170, np.uint8)) as scene:
        result = detect_scene(CountingEngine(tile=256), scene, rules())
    assert result.detections.boxes.tolist() == [[0, 0, size[1], size[0]]]


def test_tiles_without_data_are_skipped(tmp_path):
    pixels = sea(170, 200, OBJECTS)
    pixels[:, 70:] = 0
    engine = CountingEngine()
    with Scene(write_tif(tmp_path / "s.tif", pixels, nodata=0)) as scene:
        result = detect_scene(engine, scene, rules())
    assert result.empty == 12  # three of five columns
    assert sum(len(tiles) for tiles in engine.batches) == len(result.grid) - 12
    assert OBJECTS[0] in as_set(result.detections)


def test_a_scene_of_nodata_gives_nothing_and_runs_no_engine(tmp_path):
    engine = CountingEngine()
    for name, value, dtype in (("a", 0, np.uint8), ("b", np.nan, np.float32), ("c", 9, np.uint16)):
        path = write_tif(tmp_path / f"{name}.tif", np.full((90, 90), value, dtype), nodata=value)
        with Scene(path) as scene:
            result = detect_scene(engine, scene, rules())
        assert (len(result.detections), result.empty) == (0, len(result.grid))
    assert engine.batches == []


def truncated(tmp_path, fraction=0.55):
    path = write_tif(
        tmp_path / "s.tif", np.random.default_rng(0).integers(0, 40, (256, 256, 1), np.uint8), blockysize=8
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    return path


def test_what_cannot_be_read_is_unreadable_and_the_rest_is_processed(tmp_path):
    with Scene(truncated(tmp_path)) as scene:
        result = detect_scene(CountingEngine(), scene, rules(overlap=0))
    assert [tile.tile for tile in result.unreadable] == [f"r{r}c{c}" for r in (2, 3) for c in range(4)]
    assert "cannot be read at rows" in result.unreadable[0].problem


def test_strict_stops_at_the_first_unreadable_tile(tmp_path):
    before = threading.active_count()
    with (
        Scene(truncated(tmp_path)) as scene,
        pytest.raises(SceneError, match=r"cannot be read.*The run stops here because of --strict"),
    ):
        detect_scene(CountingEngine(), scene, rules(strict=True))
    assert threading.active_count() == before


def test_a_scene_of_which_nothing_can_be_read_is_an_error(tmp_path):
    with (
        Scene(truncated(tmp_path, fraction=0.01)) as scene,
        pytest.raises(SceneError, match=r"No tile of s\.tif is readable"),
    ):
        detect_scene(CountingEngine(), scene, rules())


@pytest.mark.parametrize("place", ["engine", "reader"])
def test_errors_of_either_thread_come_out_and_no_thread_stays(scene, place, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("broken")

    before = threading.active_count()
    engine = CountingEngine(find=fail) if place == "engine" else CountingEngine()
    if place == "reader":
        monkeypatch.setattr("deploy.scene.run.prefetch._prepared", fail)
    with pytest.raises(RuntimeError, match="broken"):
        detect_scene(engine, scene, rules())
    assert threading.active_count() == before


def test_stages_are_timed(scene):
    seconds = detect_scene(CountingEngine(), scene, rules()).seconds
    assert set(seconds) == {"read", "preprocess", "wait", "infer", "decode", "merge", "total"}
    assert all(value >= 0 for value in seconds.values())
    assert seconds["total"] >= seconds["infer"]


def test_progress_goes_to_stderr(scene, capsys):
    detect_scene(CountingEngine(), scene, rules(), show_progress=True)
    assert "Detecting in array" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_that_does_not_fit_is_refused(scene, batch):
    with pytest.raises(UsageError, match=f"got {batch}, expected 1 to 4"):
        detect_scene(CountingEngine(), scene, rules(), batch=batch)


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_an_overlap_that_does_not_fit_is_refused(overlap):
    with pytest.raises(UsageError, match=rf"got {overlap} with tiles of 64x64\. Lower --overlap-px"):
        grid_for((100, 100), (64, 64), rules(overlap=overlap))


def test_settings_come_from_the_manifest(tmp_path):
    manifest = write_bundle(tmp_path / "b", scale=0.4, overlap=16, score=0.25, gsd_m=0.5).manifest
    chosen = settings_for(manifest)
    assert (chosen.scale, chosen.overlap_px, chosen.postprocess.score_threshold) == (0.4, 16, 0.25)
    assert chosen.merge == MergeSettings(threshold=0.5, edge_tolerance_px=5.0, class_agnostic_iou=0.8)
    assert settings_for(manifest, score_threshold=0.6, overlap_px=8, merge="nmm", metric="ios").merge.metric == "ios"
    assert settings_for(manifest, gsd_m=0.25).scale == 0.2
    assert 64 / settings_for(manifest, gsd_m=0.33).scale == pytest.approx(round(64 / (0.4 * 0.66)))


@pytest.mark.parametrize("gsd_m", [1e-300, 0.001, 0.0048, 5.1, 1000.0, 0.0, -1.0, float("nan"), float("inf")])
def test_a_ground_sample_distance_in_another_unit_is_refused(tmp_path, gsd_m):
    manifest = write_bundle(tmp_path / "b", scale=0.4, gsd_m=0.5).manifest  # a tile is 160 px of its training images
    message = f"got a ground sample distance of {gsd_m:g} m, expected 0.00488 to 5 m"
    with pytest.raises(UsageError, match=re.escape(message)):
        settings_for(manifest, gsd_m=gsd_m)
    for fits in (0.0049, 5.0):
        assert 1 <= 64 / settings_for(manifest, gsd_m=fits).scale <= 16384


def test_settings_that_do_not_fit_are_refused(tmp_path):
    manifest = write_bundle(tmp_path / "b").manifest
    with pytest.raises(UsageError, match=r"There is no merge 'mean': expected one of border, nms, nmm, greedy_nmm"):
        settings_for(manifest, merge="mean")
    with pytest.raises(UsageError, match=r"at least 0 and below 1: got 1\.5"):
        settings_for(manifest, score_threshold=1.5)
    with pytest.raises(UsageError, match="does not state the ground sample distance"):
        settings_for(manifest, gsd_m=0.5)
    with pytest.raises(BundleError, match=r"not a whole number of pixels: got tile 64x64 and scale 0\.3"):
        settings_for(write_bundle(tmp_path / "c", scale=0.3).manifest)


def test_detect_is_a_few_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    write_bundle(tmp_path / "b")
    pixels = sea(170, 200, OBJECTS)
    path = write_tif(tmp_path / "s.tif", pixels)
    assert deploy.detect is detect
    for source in (str(path), path, pixels):
        result = deploy.detect(tmp_path / "b", source, score_threshold=0.4)
        assert as_set(result.detections) == set(OBJECTS)
        assert result.classes == CLASSES
        assert {row["category_id"] for row in result.to_coco(5)} == {7, 3}
    with Scene(path) as opened:
        assert len(detect(str(tmp_path / "b"), opened).detections) == len(OBJECTS)
        opened.read(next(iter(result.grid)))  # a scene that was given is left open


def test_importing_deploy_is_cheap():
    import subprocess
    import sys

    heavy = "{'numpy', 'rasterio', 'torch', 'PIL', 'pydantic', 'pycocotools'}"
    code = f"import deploy, sys; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    modules = ", ".join(f"deploy.scene.{name}" for name in ("run.pipeline", "write.writers", "write.quicklook"))
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_attribute_of_deploy_is_said():
    with pytest.raises(AttributeError, match="has no attribute 'detekt'"):
        deploy.detekt  # noqa: B018


def test_bright_rectangles_finds_all_objects():
    assert as_set(bright_rectangles(sea(170, 200, OBJECTS).transpose(2, 0, 1))) == set(OBJECTS)

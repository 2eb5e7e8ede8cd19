"""What is screened, skipped and searched: areas of interest, parts without data, journals, and when a screen is off."""

import numpy as np
import psutil
import pytest
from fakes.fake_scene import CountingEngine, FailingEngine, FakeEngineError, sea, write_tif
from fakes.fake_screen import BrightnessScreen
from PIL import Image
from shapely.geometry import box, mapping

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.aoi import AreaOfInterest, read_aoi
from deploy.scene.read.scene import Scene
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.run.screening import layout_for, screen_scene
from deploy.scene.screen.tile_selection import MAX_PASSED
from deploy.scene.settings import DetectionSettings, ScreenSettings, grid_for
from ifkd.core.errors import UsageError
from ifkd.core.files import write_json
from ifkd.core.postprocess import PostprocessConfig

OBJECTS = [(30, 30, 44, 42, 0), (300, 520, 316, 532, 1)]
SCENE = sea(600, 500, OBJECTS)


def rules(*, auto=False, threshold=0.5, audit=0.0, aoi=None, **options):
    screen = ScreenSettings(
        threshold=threshold, auto=auto, scale=0.5, stride=4, context_px=4, margin_px=20, audit_fraction=audit, **options
    )
    return DetectionSettings(
        scale=1.0,
        overlap_px=20,
        postprocess=PostprocessConfig(score_threshold=0.3, max_detections=50),
        merge=MergeSettings(),
        aoi=aoi,
        screen=screen,
    )


def search(scene, settings, *, network=None, engine=None, journal=None):
    network, engine = network or BrightnessScreen(), engine or CountingEngine()
    return detect_scene(LocalExecutor(engine, lambda: network), scene, settings, journal=journal), engine


def test_only_tiles_near_bright_cells_are_read_and_searched():
    with Scene(SCENE) as scene:
        full, _ = search(scene, rules().model_copy(update={"screen": None}))
        result, engine = search(scene, rules())
    assert {tuple(one) for one in result.detections.boxes.tolist()} == {one[:4] for one in OBJECTS}
    np.testing.assert_array_equal(result.detections.scores, full.detections.scores)
    record = result.screening.record
    assert record.passed == result.processed == sum(map(len, engine.batches)) < 20
    assert record.passed + record.skipped == len(result.grid)
    assert (result.empty, result.outside, record.left_out, record.audit) == (0, 0, 0, None)
    assert result.searched == 1.0


def test_tiles_without_data_or_outside_the_area_are_not_skipped_by_the_screen(tmp_path):
    pixels = SCENE.copy()
    pixels[200:420] = 0
    path = write_tif(tmp_path / "s.tif", pixels, nodata=0)
    with Scene(path) as scene:
        corners = scene.info.georeference.to_lonlat(np.array([[0.0, 0.0], [250.0, 590.0]]))
        write_json(tmp_path / "aoi.json", mapping(box(*corners.min(axis=0), *corners.max(axis=0))))
        aoi: AreaOfInterest = read_aoi(tmp_path / "aoi.json")
        plain, _ = search(scene, rules().model_copy(update={"screen": None, "aoi": aoi}))
        result, engine = search(scene, rules(aoi=aoi, audit=0.2))
    assert result.outside == plain.outside > 0
    assert result.empty == plain.empty > 0
    assert result.processed + result.empty + result.outside + result.screening.selection.unsearched == len(result.grid)
    assert sum(map(len, engine.batches)) == result.processed
    assert result.processed - result.screening.record.audit.tiles < plain.processed
    assert {tuple(one) for one in result.detections.boxes.tolist()} == {OBJECTS[0][:4]}


def test_a_part_that_cannot_be_read_is_reported_as_in_a_full_search(tmp_path):
    noise = np.random.default_rng(0).integers(20, 40, (256, 256, 1), np.uint8)
    path = write_tif(tmp_path / "s.tif", noise, blockysize=8)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.55)])
    settings = rules()
    with Scene(path) as scene:
        full, _ = search(scene, settings.model_copy(update={"screen": None}))
        result, _ = search(scene, settings)
    assert result.unreadable == full.unreadable != ()


def test_a_screen_that_lets_almost_all_pass_switches_itself_off_after_its_first_bands():
    harbor = sea(200, 300, [(x, y, x + 8, y + 8, 1) for x in range(0, 290, 30) for y in range(0, 190, 30)])
    with Scene(harbor) as scene:
        networks = [BrightnessScreen(), BrightnessScreen()]
        settings = [rules(auto=auto) for auto in (True, False)]
        results = [search(scene, one, network=network)[0] for one, network in zip(settings, networks, strict=True)]
        full, _ = search(scene, settings[0].model_copy(update={"screen": None}))
    assert [one.screening.record.is_on for one in results] == [False, True]
    for result in results:
        assert result.screening.record.skipped == 0
        np.testing.assert_array_equal(result.detections.boxes, full.detections.boxes)
    assert "off" in results[0].screening.record.summary()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_is_decoded_once_for_the_screen_and_the_search(tmp_path, suffix):
    """Counted in bytes that this process reads: a picture decoded twice is read twice."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 500, 3), np.uint8)
    path = tmp_path / f"s.{suffix}"
    Image.fromarray(pixels).save(path)
    with Scene(path) as scene:
        opened = psutil.Process().io_counters().read_chars
        result, _ = search(scene, rules(auto=True))
        fetched = psutil.Process().io_counters().read_chars - opened
    assert not result.screening.record.is_on
    assert fetched < 1.15 * path.stat().st_size


def test_the_first_bands_decide_for_a_tall_scene(monkeypatch):
    monkeypatch.setattr("deploy.scene.screen.screen_layout.BAND_PX", 128)
    pixels = sea(256 * 12, 70, [(x, y, x + 8, y + 8, 1) for x in (10, 40) for y in range(400, 3000, 20)])
    network = BrightnessScreen()
    with Scene(pixels) as scene:
        settings = rules(auto=True)
        layout = layout_for(grid_for(scene.size, (64, 64), settings), settings, None)
        selection = screen_scene(LocalExecutor(CountingEngine(), lambda: network), scene, layout, None)
    assert not selection.is_on
    assert not selection.skipped.any()
    share = network.screened / (pixels.shape[0] * 72 / 4)
    assert len(layout.probed) == 3
    assert 3 / 12 < share < 0.5, "three bands of twelve, with their context"
    assert MAX_PASSED < 1


def test_the_order_of_the_bands_does_not_matter(monkeypatch):
    monkeypatch.setattr("deploy.scene.screen.screen_layout.BAND_PX", 32)
    settings = rules(audit=0.3)

    class Backwards(LocalExecutor):
        def screen(self, scene, layout, bands, *, put):
            super().screen(scene, layout, bands[::-1], put=put)

    with Scene(SCENE) as scene:
        layout = layout_for(grid_for(scene.size, (64, 64), settings), settings, None)
        assert len(layout.bands) > 5
        one, other = (
            screen_scene(kind(CountingEngine(), BrightnessScreen), scene, layout, None)
            for kind in (LocalExecutor, Backwards)
        )
    assert 0 < one.skipped.sum() < len(one.skipped)
    np.testing.assert_array_equal(one.skipped, other.skipped)
    np.testing.assert_array_equal(one.audited, other.audited)


def test_screened_bands_are_in_the_journal_and_not_screened_again(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.scene.screen.screen_layout.BAND_PX", 64)
    settings = rules(audit=0.2)

    class Broken(BrightnessScreen):
        """A screen that fails after some parts."""

        def __init__(self, calls):
            super().__init__()
            self.calls = calls

        def objectness(self, pixels):
            self.calls -= 1
            if self.calls < 0:
                raise FakeEngineError
            return super().objectness(pixels)

    with Scene(SCENE) as scene:
        whole = BrightnessScreen()
        expected, _ = search(scene, settings, network=whole)
        rest = BrightnessScreen()
        with RowJournal(tmp_path / "journal", {}) as journal, pytest.raises(FakeEngineError):
            search(scene, settings, network=Broken(calls=2), journal=journal)
        with RowJournal(tmp_path / "journal", {}) as journal:
            assert (len(journal), journal.rows) == (2, 0)
            with pytest.raises(FakeEngineError):
                search(scene, settings, network=rest, engine=FailingEngine(1), journal=journal)
        with RowJournal(tmp_path / "journal", {}) as journal:
            result, _ = search(scene, settings, network=Broken(calls=0), journal=journal)
    assert 0 < rest.screened < whole.screened
    np.testing.assert_array_equal(result.detections.boxes, expected.detections.boxes)
    assert result.screening.record == expected.screening.record


def test_a_screen_needs_a_bundle():
    with Scene(SCENE) as scene, pytest.raises(UsageError, match="A screen needs the bundle"):
        detect_scene(CountingEngine(), scene, rules())

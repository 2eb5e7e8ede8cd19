"""A search with a screen beside one of all tiles, in a scene where the screen sees one class only."""

import pytest
from fakes.fake_scene import CountingEngine, sea, write_bundle
from fakes.fake_screen import BrightnessScreen, add_screen

from deploy.report.tables import screen_tables
from deploy.scene.read.scene import Scene
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.screen_search import compare_searches
from deploy.scene.settings import settings_for
from ifkd.data.intervals import wilson_interval

BRIGHT = [(20, 30, 60, 70, 1), (300, 300, 312, 310, 1), (500, 80, 512, 92, 1)]
DULL = [(250, 80, 264, 92, 0), (30, 300, 44, 310, 0)]


@pytest.fixture
def search(tmp_path):
    bundle = add_screen(write_bundle(tmp_path / "bundle"), threshold=0.8, scale=0.5)
    settings = settings_for(bundle.manifest, screen="auto")
    with Scene(sea(400, 560, BRIGHT + DULL)) as scene:
        yield compare_searches(LocalExecutor(CountingEngine(), BrightnessScreen), scene, settings, rounds=2)


def test_the_recall_is_that_of_the_classes_and_sizes_that_the_screen_sees(search):
    assert (search.total.detections, search.total.found, search.total.recall) == (5, 3, 0.6)
    assert search.total.interval == wilson_interval(3, 5)
    assert {name: (one.found, one.detections) for name, one in search.per_class.items()} == {
        "cargo": (0, 2),
        "tanker": (3, 3),
    }
    sizes = {name: (one.found, one.detections) for name, one in search.per_size.items()}
    assert sizes == {"small": (2, 4), "medium": (1, 1), "large": (0, 0)}
    assert search.per_size["large"].recall is None
    assert search.screening.skipped > 50


def test_durations_are_taken_in_turns_and_become_throughput(search):
    assert len(search.full_seconds) == len(search.screen_seconds) == 2
    timed = search.model_copy(update={"full_seconds": (2.0, 4.0), "screen_seconds": (0.5, 0.5)})
    assert timed.speedup == 6.0
    assert timed.megapixels_per_second == (0.224 / 3.0, 0.224 / 0.5)
    assert "60.00% of 5 detections, 6.00 times as fast" in timed.summary()


def test_tables_have_the_throughput_and_the_recall(search):
    throughput, recall = screen_tables([search.model_copy(update={"full_seconds": (3.0,), "screen_seconds": (1.0,)})])
    assert "x3.00" in throughput.plain()
    text = recall.plain()
    assert "cargo" in text
    assert "0.600 (0.231 to 0.882)" in text
    assert screen_tables([]) == []

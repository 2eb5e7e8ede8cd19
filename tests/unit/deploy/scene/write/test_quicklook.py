import numpy as np
import pytest
from fakes.fake_scene import CountingEngine, sea, write_tif
from PIL import Image

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.settings import DetectionSettings
from deploy.scene.write.quicklook import busiest_window, draw_detail, draw_overview, write_quicklooks
from ifkd.core.detections import Detections
from ifkd.core.html.colors import COLORS
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import Window

SETTINGS = DetectionSettings(
    scale=1.0,
    overlap_px=20,
    postprocess=PostprocessConfig(score_threshold=0.3, iou_threshold=0.5, max_detections=50),
    merge=MergeSettings(),
)


def boxes(*corners):
    found = np.array([[x, y, x + 20, y + 10] for x, y in corners], np.float32).reshape(-1, 4)
    return Detections(found, np.full(len(found), 0.9, np.float32), np.zeros(len(found), np.int64))


def test_the_busiest_window_contains_the_most_objects_and_is_inside_the_scene():
    crowd = [(2000 + 37 * k, 1500 + 29 * k) for k in range(10)]
    lone = [(100, 100), (3900, 2900), (50, 2900)]
    window = busiest_window(boxes(*lone, *crowd), (3000, 4000))
    assert (window.height, window.width) == (512, 512)
    for x, y in crowd:
        assert window.left <= x < x + 20 <= window.right
        assert window.top <= y < y + 10 <= window.bottom
    corner = busiest_window(boxes((3970, 2985)), (3000, 4000))
    assert (corner.right, corner.bottom) == (4000, 3000)


def test_without_objects_the_middle_is_shown():
    assert busiest_window(Detections.empty(), (1000, 2000)) == Window(244, 744, 512, 512)
    assert busiest_window(Detections.empty(), (3, 5)) == Window(0, 0, 3, 5)


def looked(pixels, **scene):
    opened = Scene(pixels, **scene)
    return detect_scene(CountingEngine(), opened, SETTINGS), opened


def looked_at(path):
    with Image.open(path) as picture:
        return picture.copy()


def has(picture, color):
    return (np.asarray(picture) == color).all(axis=2).any()


def test_pictures_show_every_class_in_its_color_and_the_sea_as_it_is(tmp_path):
    result, scene = looked(sea(600, 800, [(50, 60, 70, 75, 0), (600, 500, 640, 540, 1)]))
    assert write_quicklooks(result, scene, scene.overview(3072).pixels, tmp_path) == [
        "quicklook.png",
        "quicklook_detail.png",
    ]
    overview, detail = (looked_at(tmp_path / name) for name in ("quicklook.png", "quicklook_detail.png"))
    assert overview.width >= 800
    assert detail.width == 1024
    assert all(has(overview, color) for color in COLORS[:2])
    array = np.asarray(overview)
    assert (array[200:300, 100:250] == 30).all()


def test_a_box_is_drawn_around_its_object():
    result, scene = looked(sea(720, 720, [(300, 400, 320, 415, 1)]))
    overview = np.asarray(draw_overview(result, scene.overview(3072).pixels, Window(0, 0, 1, 1)))
    rows, columns = np.nonzero((overview[40:760] == COLORS[1]).all(axis=2))
    near = (rows > 385) & (rows < 430)  # the name stands above or below
    assert 296 <= columns[near].min() <= 300
    frame = columns[(rows >= 402) & (rows <= 413)]
    assert set(frame) <= {298, 299, 300, 319, 320, 321}
    assert len(frame) > 0


def test_large_scenes_are_thinned_and_small_ones_enlarged(tmp_path):
    result, scene = looked(sea(150, 3000, [(50, 60, 70, 75, 0)]))
    assert draw_overview(result, scene.overview(3072).pixels, Window(0, 0, 150, 512)).width == 2048
    assert draw_detail(result, scene, Window(0, 0, 150, 512)).width == 1024
    result, scene = looked(sea(1, 1, []))
    assert draw_overview(result, scene.overview(3072).pixels, Window(0, 0, 1, 1)).width >= 720


def test_unreadable_tiles_are_crossed_out(tmp_path):
    path = write_tif(tmp_path / "s.tif", sea(400, 300, [(20, 20, 40, 40, 0)]), blockysize=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result, scene = looked(path)
    with scene:
        assert result.unreadable
        whole = draw_overview(result, scene.overview(3072).pixels, Window(0, 0, 100, 100))
        assert has(whole, (190, 190, 190))
        assert draw_detail(result, scene, Window(300, 0, 100, 300)).width >= 720


@pytest.mark.parametrize("n", [0, 400])
def test_crowds_and_nothing_can_be_drawn(n):
    rng = np.random.default_rng(0)
    objects = [(x, y, x + 4, y + 4, int(rng.integers(2))) for x, y in rng.integers(0, 500, (n, 2)).tolist()]
    result, scene = looked(sea(512, 512, objects))
    assert draw_overview(result, scene.overview(3072).pixels, Window(0, 0, 512, 512)).width >= 720

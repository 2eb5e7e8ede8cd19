"""The map page of a scene, in a browser without a network."""

import json
import re

import numpy as np
import pytest
from fakes.fake_scene import CLASSES, CountingEngine, sea, write_tif
from fakes.oriented_scene import OrientedEngine, painted

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.settings import DetectionSettings
from deploy.scene.write.map_page import page_data, write_page
from ifkd.core.postprocess import PostprocessConfig

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 150, 140, 0), (190, 160, 200, 170, 0)]
SETTINGS = DetectionSettings(
    scale=1.0,
    overlap_px=20,
    postprocess=PostprocessConfig(score_threshold=0.3, iou_threshold=0.5, max_detections=50),
    merge=MergeSettings(),
)


def make(tmp_path, *, pixels=None, name="harbor.tif", crs="EPSG:32633", damaged=False):
    path = write_tif(tmp_path / name, sea(170, 200, OBJECTS) if pixels is None else pixels, crs=crs, blockysize=10)
    if damaged:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    with Scene(path) as scene:
        result = detect_scene(CountingEngine(), scene, SETTINGS)
        write_page(result, scene.overview(3072).pixels, tmp_path)
    return tmp_path / "map.html", result


def ready(visit):
    visit.page.wait_for_selector("body[data-ready]")
    return visit.page


def test_the_page_shows_the_objects_offline(open_page, tmp_path):
    path, result = make(tmp_path)
    visit = open_page(path)
    page = ready(visit)
    assert visit.errors == []
    assert page.title() == "harbor.tif"
    assert page.locator("#count").inner_text() == "4 objects"
    assert page.locator("#list button").count() == 4
    scores = [float(text) for text in page.locator("#list .number").all_inner_texts()]
    assert scores == pytest.approx(result.detections.scores.tolist(), abs=0.006)
    assert page.locator("#classes span").all_inner_texts() == ["cargo", "3", "tanker", "1"]
    assert page.locator("#scale span").inner_text().endswith(" m")


def test_filters_by_class_and_score(open_page, tmp_path):
    path, result = make(tmp_path)
    page = ready(open_page(path))
    page.locator("#classes label").nth(0).click()
    assert page.locator("#count").inner_text() == "1 of 4 objects"
    assert page.locator("#list span:nth-child(2)").all_inner_texts() == ["tanker"]
    page.locator("#all").click()
    assert page.locator("#count").inner_text() == "4 objects"
    limit = float(np.ceil(result.detections.scores[1] * 100) / 100)  # above all but the best
    page.locator("#score").fill(f"{limit:.2f}")
    assert page.locator("#count").inner_text() == "1 of 4 objects"
    assert page.locator("#value").inner_text() == f"{limit:.2f}"
    page.locator("#classes label").nth(0).click()
    assert page.locator("#nothing").inner_text() == "No object matches the filters."
    assert "hide=0" in page.url  # the address keeps the view
    page.reload()
    ready(open_page(path))
    assert page.locator("#count").inner_text() == "0 of 4 objects"


def test_an_oriented_object_is_selected_on_its_own_area(open_page, tmp_path):
    ship = np.array([[30, 20], [160, 130], [150, 142], [20, 32]])
    path = write_tif(tmp_path / "s.tif", painted((170, 200), [ship], [0]))
    with Scene(path) as scene:
        result = detect_scene(OrientedEngine(tile=256), scene, SETTINGS)
        write_page(result, scene.overview(3072).pixels, tmp_path)
    visit = open_page(tmp_path / "map.html")
    page = ready(visit)
    for x, y, selected in ((90, 81, True), (140, 40, False), (40, 35, True)):
        at = page.evaluate(f"[({x} - left) * zoom, ({y} - top_) * zoom]")
        page.mouse.move(*at)
        assert page.locator("#tip").is_visible() == selected, (x, y)
    heading, length = result.headings_deg()[0], result.detections.oriented[0, 2]
    assert f"{heading:.0f}° or {heading + 180:.0f}°" in page.locator("#tip").inner_text()
    assert f"{length:.0f} × " in page.locator("#tip").inner_text()
    assert visit.errors == []


def test_hovering_and_clicking_tell_the_details(open_page, tmp_path):
    path, result = make(tmp_path)
    page = ready(open_page(path))
    assert not page.locator("#tip").is_visible()
    x1, y1, x2, y2 = result.detections.boxes[0].tolist()
    x, y = page.evaluate(f"[({(x1 + x2) / 2} - left) * zoom, ({(y1 + y2) / 2} - top_) * zoom]")
    page.mouse.move(x, y)
    tooltip = page.locator("#tip").inner_text()
    assert CLASSES[result.detections.labels[0]] in tooltip
    assert f"{result.detections.scores[0]:.3f}" in tooltip
    assert "30 × 22 px" in tooltip
    assert "60 × 44 m" in tooltip
    longitude, latitude = page_data(result)["lonlat"][0]
    assert f"{latitude:.6f}° N" in tooltip
    assert f"{longitude:.6f}° E" in tooltip
    page.mouse.move(2, 2)
    assert not page.locator("#tip").is_visible()
    page.mouse.click(x, y)
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_visible()
    assert "object=0" in page.url
    page.keyboard.press("Escape")  # the map has the focus
    page.locator("#list button").nth(2).click()
    box = result.detections.boxes[2]
    middle = page.evaluate(f"[({(box[0] + box[2]) / 2} - left) * zoom, ({(box[1] + box[3]) / 2} - top_) * zoom]")
    assert middle == pytest.approx([(1280 + 320) / 2, 450], abs=2)


def test_zooming_keeps_what_is_under_the_pointer(open_page, tmp_path):
    path, _ = make(tmp_path)
    page = ready(open_page(path))
    where = "[800 / zoom + left, 300 / zoom + top_, zoom]"
    before = page.evaluate(where)
    page.mouse.move(800, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_function(f"zoom > {before[2]} * 1.01")
    after = page.evaluate(where)
    assert after[:2] == pytest.approx(before[:2], abs=1e-6)
    page.keyboard.press("Tab")
    page.locator("canvas").focus()
    page.keyboard.press("0")
    assert page.evaluate("zoom") == pytest.approx(before[2])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_map_comes_first(open_page, tmp_path, scheme):
    path, _ = make(tmp_path)
    visit = open_page(path, width=390, height=844, scheme=scheme)
    page = ready(visit)
    assert visit.overflow_px() == 0
    assert not page.locator("#body").is_visible()
    page.locator("#fold").click()
    assert page.locator("#body").is_visible()
    assert page.locator("#panel").bounding_box()["y"] > 844 * 0.3
    visit.screenshot(tmp_path / "phone.png", full_page=False)


def test_names_cannot_break_the_page(open_page, html_errors, tmp_path):
    path, result = make(tmp_path, name="a <b>&\"'.tif")
    visit = open_page(path)
    assert ready(visit).locator("h1").inner_text() == "a <b>&\"'.tif"
    assert visit.errors == []
    newer = ("color-scheme", "backdrop-filter")  # than the validator's CSS
    assert [error for error in html_errors(path) if not any(name in error for name in newer)] == []
    text = path.read_text()
    data = json.loads(re.search(r'id="scene">(.*?)</script>', text, re.DOTALL)[1])
    assert data == json.loads(json.dumps(page_data(result)))


def test_pages_without_objects_place_or_some_of_the_pixels(open_page, tmp_path):
    (tmp_path / "a").mkdir()
    path, _ = make(tmp_path / "a", pixels=sea(1, 1, []))
    page = ready(open_page(path))
    assert page.locator("#count").inner_text() == "0 objects"
    assert page.locator("#nothing").inner_text() == "No object was detected in this scene."
    (tmp_path / "b").mkdir()
    path, result = make(tmp_path / "b", damaged=True)
    visit = open_page(path)
    assert ready(visit).evaluate("scene.unreadable.length") == len(result.unreadable) > 0
    assert visit.errors == []
    visit.page.locator("summary").click()
    assert f"{len(result.unreadable)} tiles, crossed out" in visit.page.locator("#facts").inner_text()


def test_the_page_needs_nothing_else(tmp_path):
    path, _ = make(tmp_path)
    text = path.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)
    assert "http" not in text.replace("http-equiv", "")
    assert "{{" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)

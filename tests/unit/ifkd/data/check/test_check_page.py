"""check.html in a browser: narrow and wide, light and dark, offline."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from deploy.cli.main import main
from ifkd.data.check.check import CheckPlan, CheckSource, check
from ifkd.data.check.page_pictures import sample_pictures
from ifkd.imagery.contrast import ImageryOptions

MISTAKES = [[70, 3, 9, 9], [50, 3, 40, 9], [3, 3, 0, 4], [5, 5, 0.5, 9]]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, write_data_set):
    """Pages of a valid data set, and of one with every kind of finding that has pictures."""
    root = tmp_path_factory.mktemp("check")
    clean = write_data_set(root / "clean", "train", images=6)
    main(["data", "check", str(clean), "--out", str(root / "clean-page")])
    train = write_data_set(root / "bad", "train", images=8)
    test = write_data_set(root / "bad", "test", images=5, seed=1)
    content = json.loads(train.read_text())
    for annotation, bbox in zip(content["annotations"], MISTAKES, strict=False):
        annotation["bbox"] = bbox
    content["images"][-1]["file_name"] = (
        "a very long name of an image that is not there at all <b>bold</b>" * 3 + ".png"
    )
    content["categories"].append({"id": 11, "name": "raft <i>&amp; float</i>"})
    train.write_text(json.dumps(content))
    content = json.loads(test.read_text())
    images = train.parent / "images"
    Image.open(images / "train_003.png").save(images / "test_000.png")
    Image.open(images / "train_004.png").save(images / "test_001.jpg", quality=50)
    content["images"][1]["file_name"] = "test_001.jpg"
    test.write_text(json.dumps(content))
    words = [f"train={train}", f"test={test}", "--out", str(root / "bad-page"), "--fix", str(root / "fixed")]
    assert main(["data", "check", *words]) == 1
    return {"clean": root / "clean-page" / "check.html", "bad": root / "bad-page" / "check.html"}


@pytest.mark.parametrize("name", ["clean", "bad"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_the_page_fits_the_window_without_errors(open_page, pages, name, width, scheme):
    visit = open_page(pages[name], width=width, scheme=scheme, scripts=False)
    assert visit.errors == []
    assert open_page(pages[name], width=width).overflow_px() == 0


def test_the_pages_are_valid_html(html_errors, pages):
    assert html_errors(*pages.values()) == []


def test_the_verdict_is_at_the_top(open_page, pages):
    good = open_page(pages["clean"]).page
    assert "Clean" in good.locator("h2").first.inner_text()
    assert good.locator("#findings .failed, #findings .warning").count() == 0  # notes have another class
    bad = open_page(pages["bad"]).page
    assert "Findings" in bad.locator("h2").first.inner_text()
    assert bad.locator("h2").first.bounding_box()["y"] < 300


def test_the_page_has_findings_charts_and_pictures(open_page, pages):
    page = open_page(pages["bad"]).page
    words = page.locator("#findings").inner_text()
    for text in (
        "boxes completely outside their image",
        "missing image files",
        "images with the same pixels as one of another split",
        "--fix",
    ):
        assert text in words
    assert "raft <i>&amp; float</i>" in page.locator("#contents").inner_text()
    for title in ("Objects by class", "Box sizes", "Samples", "Invalid boxes", "Duplicates across splits"):
        assert page.get_by_role("heading", name=title).count() == 1, title
    assert "The fixed copy" in page.locator("main").inner_text()
    pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth > 0, i.alt.length > 10])")
    assert len(pictures) >= 12
    assert all(all(facts) for facts in pictures)
    axes = page.locator("svg[aria-labelledby^=boxes] desc").text_content()
    assert "both logarithmic" in axes


def test_text_of_files_is_escaped(open_page, pages):
    page = open_page(pages["bad"]).page
    assert page.locator("main b b, main li > b > i, #contents i").count() == 0
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert "<b>bold</b>" in page.locator("#findings").inner_text()


@pytest.mark.parametrize("oriented", [True, False])
def test_pictures_show_oriented_boxes_where_labels_have_them(tmp_path, oriented):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(tmp_path / "images" / "a.png")
    corners = [(60, 40), (160, 140), (140, 160), (40, 60)]
    polygon = {"segmentation": [[value for point in corners for value in point]]} if oriented else {}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 200, "width": 200}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [40, 40, 120, 120], "iscrowd": 0, **polygon}
        ],
        "categories": [{"id": 1, "name": "ship"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    checked = check(CheckPlan((CheckSource("train", tmp_path / "a.json"),)), workers=1)
    (picture,) = sample_pictures(checked, ImageryOptions())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.jpeg_base64)))).astype(int)
    factor = pixels.shape[0] / 200
    drawn = (np.abs(pixels - 90) > 40).any(axis=2)

    def is_drawn(x, y):
        column, row = round(x * factor), round(y * factor)
        return bool(drawn[row - 4 : row + 5, column - 4 : column + 5].any())

    assert is_drawn(110, 90) == is_drawn(50, 50) == is_drawn(90, 110) == oriented
    assert is_drawn(100, 40) == is_drawn(160, 60) == (not oriented)
    assert not is_drawn(100, 100)

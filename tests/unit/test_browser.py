"""The browser that tests of pages share sees what is wrong with a page."""

import pytest
from PIL import Image

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<style>body{{margin:0;background:#fff}}@media (prefers-color-scheme:dark){{body{{background:#000}}}}</style></head>
<body><h1>Seen</h1>{more}</body></html>"""


def write(folder, more=""):
    path = folder / "page.html"
    path.write_text(PAGE.format(more=more))
    return path


def test_a_page_is_seen(open_page, tmp_path):
    visit = open_page(write(tmp_path, "<div style='height:3000px'></div>"), width=390)
    assert visit.page.locator("h1").inner_text() == "Seen"
    assert visit.errors == []
    assert visit.overflow_px() == 0
    with Image.open(visit.screenshot(tmp_path / "a" / "page.png")) as picture:
        assert picture.width == 390
        assert picture.height > 3000


@pytest.mark.parametrize(("scheme", "color"), [("light", (255, 255, 255)), ("dark", (0, 0, 0))])
def test_the_color_scheme_is_obeyed(open_page, tmp_path, scheme, color):
    shot = open_page(write(tmp_path), scheme=scheme).screenshot(tmp_path / "page.png", whole=False)
    with Image.open(shot) as picture:
        assert picture.convert("RGB").getpixel((1200, 800)) == color


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("<script>throw new Error('broken')</script>", "script: broken"),
        ("<script>console.error('complaint')</script>", "console error: complaint"),
        ("<img src='https://example.org/a.png' alt='a'>", "request left the machine: https://example.org/a.png"),
        ("<img src='absent.png' alt='a'>", "request failed: file://"),
    ],
)
def test_what_goes_wrong_is_told(open_page, tmp_path, more, said):
    assert any(error.startswith(said) for error in open_page(write(tmp_path, more)).errors)


def test_a_page_too_wide_is_told(open_page, tmp_path):
    assert open_page(write(tmp_path, "<div style='width:600px'>w</div>"), width=390).overflow_px() == 210


def test_the_validator_knows_good_from_bad(html_errors, tmp_path):
    bodies = {"good": "", "twice": "<p id='a'></p><p id='a'></p>", "mute": "<img src='a.png'>"}
    for name, more in bodies.items():
        (tmp_path / f"{name}.html").write_text(PAGE.format(more=more))
    found = html_errors(*(tmp_path / f"{name}.html" for name in bodies))
    assert {error.split(".")[0] for error in found} == {"twice", "mute"}
    assert any("Duplicate ID" in error for error in found)
    assert any("alt" in error for error in found)

"""The browser fixtures detect the errors of a page."""

import pytest
from PIL import Image

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<style>body{{margin:0;background:#fff}}@media (prefers-color-scheme:dark){{body{{background:#000}}}}</style></head>
<body><h1>Title</h1>{more}</body></html>"""


def write(folder, more=""):
    path = folder / "page.html"
    path.write_text(PAGE.format(more=more))
    return path


def test_a_page_is_opened(open_page, tmp_path):
    visit = open_page(write(tmp_path, "<div style='height:3000px'></div>"), width=390)
    assert visit.page.locator("h1").inner_text() == "Title"
    assert visit.errors == []
    assert visit.overflow_px() == 0
    with Image.open(visit.screenshot(tmp_path / "a" / "page.png")) as picture:
        assert picture.width == 390
        assert picture.height > 3000


@pytest.mark.parametrize(("scheme", "color"), [("light", (255, 255, 255)), ("dark", (0, 0, 0))])
def test_the_color_scheme_is_applied(open_page, tmp_path, scheme, color):
    shot = open_page(write(tmp_path), scheme=scheme).screenshot(tmp_path / "page.png", full_page=False)
    with Image.open(shot) as picture:
        assert picture.convert("RGB").getpixel((1200, 800)) == color


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("<script>throw new Error('broken')</script>", "script: broken"),
        ("<script>console.error('complaint')</script>", "console error: complaint"),
        ("<img src='https://example.org/a.png' alt='a'>", "request to the network: https://example.org/a.png"),
        ("<img src='absent.png' alt='a'>", "request failed: file://"),
    ],
)
def test_errors_are_recorded(open_page, tmp_path, more, expected):
    assert any(error.startswith(expected) for error in open_page(write(tmp_path, more)).errors)


def test_a_page_that_is_too_wide_has_overflow(open_page, tmp_path):
    assert open_page(write(tmp_path, "<div style='width:600px'>w</div>"), width=390).overflow_px() == 210


def test_the_validator_finds_errors(html_errors, tmp_path):
    bodies = {"good": "", "duplicate": "<p id='a'></p><p id='a'></p>", "no_alt": "<img src='a.png'>"}
    for name, more in bodies.items():
        (tmp_path / f"{name}.html").write_text(PAGE.format(more=more))
    found = html_errors(*(tmp_path / f"{name}.html" for name in bodies))
    assert {error.split(".")[0] for error in found} == {"duplicate", "no_alt"}
    assert any("Duplicate ID" in error for error in found)
    assert any("alt" in error for error in found)

"""Reports in a browser: on small and large screens, in light and dark schemes, in print, without a network."""

import pytest
from fakes import report_inputs as parts

from deploy.report.compare import compare
from deploy.report.comparison_page import comparison_page
from deploy.report.page import write_report


def half_off(candidates):
    candidates.boxes[:] += 0.5
    return candidates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    good = parts.full_report(root / "good")
    bad = parts.full_report(root / "bad", drift=half_off)
    write_report(good, root / "passed")
    write_report(bad, root / "failed")
    (root / "compared").mkdir()
    (root / "compared" / "report.html").write_text(comparison_page(compare({"main": good, "new": bad})))
    return root


@pytest.mark.parametrize("name", ["passed", "failed", "compared"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_console_errors(open_page, folder, name, width, scheme):
    visit = open_page(folder / name / "report.html", width=width, scheme=scheme, scripts=False)
    visit.screenshot(folder / "shots" / f"{name}-{width}-{scheme}.png")
    assert visit.errors == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("name", ["failed", "compared"])
def test_only_wide_tables_scroll_sideways(open_page, folder, name, width):
    visit = open_page(folder / name / "report.html", width=width)
    assert visit.overflow_px() == 0
    assert visit.page.locator(".scroll[tabindex='0']").count() == visit.page.locator("table").count()


def test_the_pages_are_valid_html(html_errors, folder):
    assert html_errors(*(folder / name / "report.html" for name in ("passed", "failed", "compared"))) == []


def test_the_verdict_comes_first_and_all_sections_follow(open_page, folder):
    page = open_page(folder / "failed" / "report.html").page
    first = page.locator("h2").first
    assert "Failed" in first.inner_text()
    assert first.bounding_box()["y"] < 300
    words = page.locator("main").inner_text()
    assert "Starts at decode" in words
    assert "Savings of the student compared with harbor teacher" in words
    assert "GPU not monitored" in words
    for title in (
        "Accuracy against latency",
        "Latency per tile, all samples",
        "Throughput by batch size",
        "Time of each stage of an image",
        "Change of AP by class, compared with the torch network",
        "Largest differences of onnxruntime fp16",
        "Differences of boxes",
        "Differences of scores",
    ):
        assert page.get_by_role("heading", name=title).count() == 1, title


def test_pictures_are_decoded_and_described(open_page, folder):
    page = open_page(folder / "failed" / "report.html").page
    pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth > 0, i.alt.length > 10])")
    assert len(pictures) >= 5
    assert all(all(facts) for facts in pictures)
    charts = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.querySelector('desc').textContent.length)")
    assert len(charts) >= 7
    assert min(charts) > 20


CONTRAST = """() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (e.closest('style,title,desc')) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const ink = e.closest('svg') ? style.fill : style.color;
    const [a, b] = [lum(rgb(ink)), lum(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push(`${e.tagName} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return [...new Set(poor)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["failed", "compared"])
def test_all_text_has_sufficient_contrast(open_page, folder, name, scheme):
    assert open_page(folder / name / "report.html", scheme=scheme).page.evaluate(CONTRAST) == []


def test_all_sections_are_reached_by_keyboard(open_page, folder):
    page = open_page(folder / "passed" / "report.html").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.getAttribute('href') || document.activeElement.className"))
    assert {"#accuracy", "#engines", "#parity", "#scene", "#environment", "scroll"} <= seen


def test_print_is_on_white(open_page, folder):
    visit = open_page(folder / "passed" / "report.html", scheme="dark")
    visit.page.emulate_media(media="print", color_scheme="dark")
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not visit.page.locator("nav").first.is_visible()
    pdf = visit.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000

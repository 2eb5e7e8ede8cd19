"""What all figures share: their look, their colors, and how one becomes files with the numbers behind it.

Matplotlib draws without a display and without its global state. Equal numbers give equal bytes: nothing in a file
tells when it was made, and the ids in an SVG are digests of what they name.
"""

import csv
import importlib.util
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifkd.core.detections import Array
from ifkd.core.errors import MissingExtraError
from ifkd.core.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
DPI = 300
COLUMN_INCHES, PAGE_INCHES = 3.4, 7.0
"""Widths of one column and of both in a two-column paper."""
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
"""Told apart with any color vision (Okabe and Ito 2008)."""
MARKERS = "osD^vPXd"
PREDICTED, TRUE = "#D55E00", "#0072B2"
"""The paper's red and blue, in the shades of them that are told apart with any color vision."""
HEAT = "cividis"
"""The color map of values that begin at 0: even, and the same with any color vision."""
AROUND = "PuOr"
"""The color map of values around a middle."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,
    "svg.hashsalt": "ifkd",
    "image.interpolation": "nearest",
    "image.composite_image": False,
}
UNDATED: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What each format would say of when and by what it was written."""

Row = Sequence[str | int | float]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers behind a figure."""

    headings: tuple[str, ...]
    rows: Sequence[Row]

    def csv(self) -> str:
        """Return them as CSV; figures have all the digits that float32 tells apart."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row] for row in self.rows)
        return stream.getvalue()

    def write(self, path: Path) -> Path:
        """Write them, and return the path.

        Raises:
            OutputError: The file cannot be written.
        """
        write_text(path, self.csv())
        return path


def need_matplotlib() -> None:
    """Find that figures can be drawn, before anything is computed for them.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="figures", need="A figure of `ifkd study`")


@contextmanager
def sheet(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple["Figure", Any]]:
    """Yield a figure of so many inches and its axes as an array [rows, columns], in our look.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib import rc_context  # noqa: PLC0415 - an optional package
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axes: "Axes", *, title: str = "") -> None:
    """Take the frame and the ticks from axes that show an image."""
    axes.set_axis_off()
    axes.set_title(title, pad=3)


def panel_widths(columns: int) -> tuple[float, float]:
    """Return the width of a figure of square panels and of one of them, inches; few panels do not fill a page."""
    side = PAGE_INCHES / max(columns, 3)
    return max(columns * side, COLUMN_INCHES), side


def picture(axes: "Axes", pixels: Array, **options: Any) -> None:
    """Show an image so that (0, 0) is the outer corner of its first pixel, as it is for boxes."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), **options)


def save(figure: "Figure", numbers: Numbers, folder: Path, name: str) -> list[Path]:
    """Write a figure in all formats and its numbers, and return the paths.

    Raises:
        OutputError: The folder cannot be written.
    """
    paths = [folder / f"{name}.{form}" for form in FORMATS]
    for path, form in zip(paths, FORMATS, strict=True):
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=form, metadata=UNDATED[form])
    return [*paths, numbers.write(folder / f"{name}.csv")]

"""Matplotlib set-up that all figures share: style, colors, and saving.

Matplotlib runs without a display and without its global state. Equal data give equal files: no file contains a date,
and the ids in an SVG are derived from its content.
"""

import csv
import importlib.util
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifkd.core.detections import Array
from ifkd.core.errors import MissingExtraError
from ifkd.core.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES, PAGE_INCHES = 3.4, 7.0
"""Widths of one column and of both columns in a two-column paper."""
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
"""Colors that are distinguishable with any color vision (Okabe and Ito 2008)."""
MARKERS = "osD^vPXd"
PREDICTED_COLOR, GROUND_TRUTH_COLOR = OKABE_ITO[4], OKABE_ITO[0]
SEQUENTIAL_CMAP = "cividis"
"""For values that start at 0."""
DIVERGING_CMAP = "PuOr"
"""For values around a center."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.fontsize": 7, "legend.frameon": False,
    "lines.linewidth": 1.4, "figure.dpi": 300, "savefig.dpi": 300, "pdf.fonttype": 42, "svg.hashsalt": "ifkd",
    "image.interpolation": "nearest", "image.composite_image": False,
}  # fmt: skip
REPRODUCIBLE_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Format -> metadata keys to leave out, because they contain dates and versions."""

Row = Sequence[str | int | float]


@dataclass(frozen=True, slots=True)
class FigureData:
    """The data of a figure as a table."""

    headings: tuple[str, ...]
    rows: Sequence[Row]

    def csv(self) -> str:
        """Return the table as CSV; nine digits represent each float32 exactly."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row] for row in self.rows)
        return stream.getvalue()

    def write(self, path: Path) -> Path:
        """Write the CSV file, and return its path."""
        write_text(path, self.csv())
        return path


def require_matplotlib() -> None:
    """Check that Matplotlib is installed, before anything is computed for a figure.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="figures", need="A figure of `ifkd study`")


@contextmanager
def subplots(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple["Figure", Any]]:
    """Yield a styled figure of a size in inches, and its axes as an array [rows, columns]."""
    from matplotlib import rc_context  # noqa: PLC0415 - an optional package
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def panel_grid(
    rows: int, columns: int, *, aspect: float, margin: float
) -> AbstractContextManager[tuple["Figure", Any]]:
    """Return subplots of panels of height / width `aspect`, and `margin` inches below; few do not fill the page."""
    side = PAGE_INCHES / max(columns, 3)
    width = max(columns * side, COLUMN_INCHES)
    return subplots(width, rows * side * aspect + margin, rows=rows, columns=columns)


def show_image(axes: "Axes", pixels: Array, *, title: str = "", **options: Any) -> None:
    """Draw an image without frame and ticks; (0, 0) is the outer corner of the first pixel, as for boxes."""
    height, width = pixels.shape[:2]
    axes.set_axis_off()
    axes.set_title(title, pad=3)
    axes.imshow(pixels, extent=(0, width, height, 0), **options)


def save_figure(figure: "Figure", data: FigureData, folder: Path, name: str) -> list[Path]:
    """Write a figure in all formats and its data as CSV, and return the paths.

    Raises:
        OutputError: The folder is not writable.
    """
    paths = {file_format: folder / f"{name}.{file_format}" for file_format in REPRODUCIBLE_METADATA}
    for file_format, path in paths.items():
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=file_format, metadata=REPRODUCIBLE_METADATA[file_format])
        figure.set_layout_engine("none")  # the other formats have the layout of the first, which is slow to compute
    return [*paths.values(), data.write(folder / f"{name}.csv")]

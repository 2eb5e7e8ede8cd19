"""Figures of maps over images: Figure 3 of the paper, the masks of FRS and HSM, and FDR's frequencies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ifkd import recipe
from ifkd.core.detections import Array
from ifkd.study.figures import plotting
from ifkd.study.figures.example_intermediates import ExampleIntermediates
from ifkd.study.figures.examples import Example
from ifkd.study.figures.plotting import FigureData, Row

MAP_OPACITY = 0.62
DISTURBANCE, MASKS, FREQUENCIES = "figure3-disturbance", "masks", "fdr-frequencies"


@dataclass(frozen=True, slots=True)
class Panel:
    """One column of maps."""

    key: str
    """Name in the CSV."""
    title: str
    maps: Sequence[Array]
    """By example, [height, width]."""
    limits: tuple[float, float] | None = None
    """Values at the ends of the color map; by default each map's minimum and maximum."""


def map_panels(maps: ExampleIntermediates, level: recipe.Level) -> dict[str, list[Panel]]:
    """Return the panels of each figure of a level; `DISTURBANCE` only where EDE is on."""
    found = maps.at_level(level)
    teacher = [activation(one.teacher) for one in found]
    low_masked = [activation(one.low * one.richness) for one in found]
    frs, hsm = [_single_channel(one.richness) for one in found], [_single_channel(one.similarity) for one in found]
    figures = {
        FREQUENCIES: [
            Panel("features", "features", teacher),
            Panel("low", "low frequencies", [activation(one.low) for one in found]),
            Panel("low_masked", r"low, times $M_\mathrm{FRS}$", low_masked),
            Panel("high", "high frequencies", [activation(one.teacher - one.low) for one in found]),
        ],
        MASKS: [
            Panel("m_frs", r"$M_\mathrm{FRS}$: teacher's confidence", frs, (0.0, 1.0)),
            Panel("m_hsm", r"$M_\mathrm{HSM}$: teacher-student distance", hsm),
        ],
    }
    ede = [activation(one.disturbance) for one in found if one.disturbance is not None]
    disturbed = Panel("disturbed", "teacher + EDE", [activation(one.disturbed) for one in found])
    panels = [Panel("teacher", "teacher", teacher), disturbed, Panel("disturbance", f"EDE ({maps.encoder})", ede)]
    return {**figures, DISTURBANCE: panels} if ede else figures


def activation(features: Tensor) -> Array:
    """Return the mean over channels of the absolute features of a batch of one, [height, width]."""
    return _single_channel(features.abs().mean(dim=1, keepdim=True))


def _single_channel(mask: Tensor) -> Array:
    return mask[0, 0].float().cpu().numpy()


def draw_maps(
    examples: Sequence[Example], panels: Sequence[Panel], folder: Path, name: str, level: recipe.Level
) -> list[Path]:
    """Write a row for each example: the image, and the image under each panel's map."""
    tallest = max(example.size[0] / example.size[1] for example in examples)
    with plotting.panel_grid(len(examples), 1 + len(panels), aspect=tallest, margin=0.3) as (figure, grid):
        for row, example in enumerate(examples):
            plotting.show_image(grid[row, 0], example.pixels, title="image" if row == 0 else "")
            gray = example.pixels.mean(axis=2)
            for axes, panel in zip(grid[row, 1:], panels, strict=True):
                title = panel.title if row == 0 else ""
                plotting.show_image(axes, gray, title=title, cmap="gray", vmin=0, vmax=255)
                _overlay_map(axes, example.size, panel.maps[row], level, panel.limits)
        return plotting.save_figure(figure, map_data(examples, panels), folder, f"{name}-{level}")


def _overlay_map(
    axes: Any, size: tuple[int, int], values: Array, level: recipe.Level, limits: tuple[float, float] | None
) -> None:
    """Draw a level's map over an image of (height, width), each cell over its pixels; the padding is cut off."""
    height, width = size
    stride = 2 ** int(level[1:])
    rows, columns = -(-height // stride), -(-width // stride)
    low, high = limits or (float(values[:rows, :columns].min()), float(values[:rows, :columns].max()))
    extent = (0, values.shape[1] * stride, values.shape[0] * stride, 0)
    color_limits = {"vmin": low, "vmax": max(high, low + 1e-12)}
    axes.imshow(values, cmap=plotting.SEQUENTIAL_CMAP, alpha=MAP_OPACITY, extent=extent, **color_limits)
    axes.set(xlim=(0, width), ylim=(height, 0))


def map_data(examples: Sequence[Example], panels: Sequence[Panel]) -> FigureData:
    """Return every cell of every map."""
    rows: list[Row] = [
        (example.name, panel.key, row, column, float(value))
        for number, example in enumerate(examples)
        for panel in panels
        for (row, column), value in np.ndenumerate(panel.maps[number])
    ]
    return FigureData(("image", "panel", "row", "column", "value"), rows)

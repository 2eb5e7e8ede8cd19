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


def draw_disturbance(
    maps: ExampleIntermediates, examples: Sequence[Example], level: recipe.Level, folder: Path
) -> list[Path]:
    """Write Figure 3: activations of the teacher at a level without and with EDE, and of EDE alone."""
    found = maps.at_level(level)
    panels = [
        Panel("teacher", "teacher", [activation(one.teacher) for one in found]),
        Panel("disturbed", "teacher + EDE", [activation(one.disturbed) for one in found]),
        Panel("disturbance", f"EDE ({maps.encoder})", [activation(one.disturbance) for one in found]),
    ]
    return draw_maps(examples, panels, folder, f"{DISTURBANCE}-{level}", level)


def draw_masks(
    maps: ExampleIntermediates, examples: Sequence[Example], level: recipe.Level, folder: Path
) -> list[Path]:
    """Write the masks of a level: M_FRS and M_HSM."""
    found = maps.at_level(level)
    frs = [single_channel(one.richness) for one in found]
    hsm = [single_channel(one.similarity) for one in found]
    panels = [
        Panel("m_frs", r"$M_\mathrm{FRS}$: teacher's confidence", frs, (0.0, 1.0)),
        Panel("m_hsm", r"$M_\mathrm{HSM}$: teacher-student distance", hsm),
    ]
    return draw_maps(examples, panels, folder, f"{MASKS}-{level}", level)


def draw_frequencies(
    maps: ExampleIntermediates, examples: Sequence[Example], level: recipe.Level, folder: Path
) -> list[Path]:
    """Write the low and high frequencies into which FDR splits the teacher's features at a level."""
    found = maps.at_level(level)
    panels = [
        Panel("features", "features", [activation(one.teacher) for one in found]),
        Panel("low", "low frequencies", [activation(one.low) for one in found]),
        Panel("low_masked", r"low, times $M_\mathrm{FRS}$", [activation(one.low * one.richness) for one in found]),
        Panel("high", "high frequencies", [activation(one.teacher - one.low) for one in found]),
    ]
    return draw_maps(examples, panels, folder, f"{FREQUENCIES}-{level}", level)


def activation(features: Tensor | None) -> Array:
    """Return the mean over channels of the absolute features of a batch of one, [height, width]."""
    assert features is not None
    return single_channel(features.abs().mean(dim=1, keepdim=True))


def single_channel(mask: Tensor) -> Array:
    """Return a map of shape [1, 1, height, width] as [height, width]."""
    values: Array = mask[0, 0].float().cpu().numpy()
    return values


def draw_maps(
    examples: Sequence[Example], panels: Sequence[Panel], folder: Path, name: str, level: recipe.Level
) -> list[Path]:
    """Write a row for each example: the image, and the image under each panel's map."""
    columns = 1 + len(panels)
    width, side = plotting.panel_widths(columns)
    tallest = max(example.size[0] / example.size[1] for example in examples)
    with plotting.subplots(width, len(examples) * side * tallest + 0.3, rows=len(examples), columns=columns) as (
        figure,
        grid,
    ):
        for row, example in enumerate(examples):
            plotting.show_image(grid[row, 0], example.pixels, title="image" if row == 0 else "")
            for column, panel in enumerate(panels, start=1):
                title = panel.title if row == 0 else ""
                plotting.show_image(
                    grid[row, column], example.pixels.mean(axis=2), title=title, cmap="gray", vmin=0, vmax=255
                )
                overlay_map(grid[row, column], example.size, panel.maps[row], level, panel.limits)
        return plotting.save_figure(figure, map_data(examples, panels), folder, name)


def overlay_map(
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
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def map_data(examples: Sequence[Example], panels: Sequence[Panel]) -> FigureData:
    """Return every cell of every map."""
    rows: list[Row] = [
        (example.name, panel.key, row, column, float(value))
        for number, example in enumerate(examples)
        for panel in panels
        for (row, column), value in np.ndenumerate(panel.maps[number])
    ]
    return FigureData(("image", "panel", "row", "column", "value"), rows)

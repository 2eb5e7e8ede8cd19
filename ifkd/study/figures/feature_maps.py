"""Figures of maps over images: Figure 3 of the paper, and the diagnostics of FDR, FRS and HSM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ifkd import recipe
from ifkd.core.detections import Array
from ifkd.study.figures.drawing import HEAT, Numbers, Row, bare, panel_widths, picture, save, sheet
from ifkd.study.figures.example_intermediates import ExampleIntermediates
from ifkd.study.figures.examples import Example

STRENGTH = 0.62
"""How far a map covers the image below it."""
HEATS, MASKS, BANDS = "figure3-disturbance", "masks", "frequency-bands"


@dataclass(frozen=True, slots=True)
class Panel:
    """One column of maps."""

    key: str
    """In the CSV."""
    title: str
    maps: Sequence[Array]
    """By example, [height, width]."""
    limits: tuple[float, float] | None = None
    """Values at the ends of the colors; by default each map's least and greatest."""


def draw_disturbance(
    insight: ExampleIntermediates, shown: Sequence[Example], level: recipe.Level, folder: Path
) -> list[Path]:
    """Write Figure 3: where the teacher is active at a level, alone and with EDE, and EDE itself."""
    found = insight.at(level)
    panels = [
        Panel("teacher", "teacher alone", [activity(one.teacher) for one in found]),
        Panel("disturbed", "teacher + EDE", [activity(one.disturbed) for one in found]),
        Panel("disturbance", f"EDE alone ({insight.encoder})", [activity(one.disturbance) for one in found]),
    ]
    return draw_maps(shown, panels, folder, f"{HEATS}-{level}", level)


def draw_masks(
    insight: ExampleIntermediates, shown: Sequence[Example], level: recipe.Level, folder: Path
) -> list[Path]:
    """Write the masks of a level: where the teacher finds any class likely, and where teacher and student differ.

    The second needs the layers that the run learned, and is left out where it did not keep them.
    """
    found = insight.at(level)
    panels = [
        Panel(
            "m_frs", r"$M_\mathrm{FRS}$, where the teacher is sure", [plane(one.richness) for one in found], (0.0, 1.0)
        )
    ]
    if insight.unlearned is None:
        panels.append(Panel("m_hsm", r"$M_\mathrm{HSM}$, where both differ", [plane(one.similarity) for one in found]))
    return draw_maps(shown, panels, folder, f"{MASKS}-{level}", level)


def draw_bands(
    insight: ExampleIntermediates, shown: Sequence[Example], level: recipe.Level, folder: Path
) -> list[Path]:
    """Write what FDR takes apart and puts together at a level."""
    found = insight.at(level)
    panels = [
        Panel("features", "features", [activity(one.teacher) for one in found]),
        Panel("low", "low frequencies", [activity(one.low) for one in found]),
        Panel("low_kept", r"low, kept by $M_\mathrm{FRS}$", [activity(one.low * one.richness) for one in found]),
        Panel("high", "high frequencies", [activity(one.teacher - one.low) for one in found]),
    ]
    return draw_maps(shown, panels, folder, f"{BANDS}-{level}", level)


def activity(features: Tensor | None) -> Array:
    """Return the mean over channels of a map's absolute values, [height, width], of a batch of one."""
    assert features is not None
    return plane(features.abs().mean(dim=1, keepdim=True))


def plane(mask: Tensor) -> Array:
    """Return a map of one channel, of a batch of one, as [height, width]."""
    found: Array = mask[0, 0].float().cpu().numpy()
    return found


def draw_maps(
    shown: Sequence[Example], panels: Sequence[Panel], folder: Path, name: str, level: recipe.Level
) -> list[Path]:
    """Write images with maps over them: a row for each example, the image itself first.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    columns = 1 + len(panels)
    width, side = panel_widths(columns)
    tallest = max(example.size[0] / example.size[1] for example in shown)
    with sheet(width, len(shown) * side * tallest + 0.3, rows=len(shown), columns=columns) as (figure, grid):
        for row, example in enumerate(shown):
            bare(grid[row, 0], title="image" if row == 0 else "")
            picture(grid[row, 0], example.pixels)
            for column, panel in enumerate(panels, start=1):
                bare(grid[row, column], title=panel.title if row == 0 else "")
                overlay(grid[row, column], example, panel.maps[row], level, panel.limits)
        return save(figure, map_numbers(shown, panels), folder, name)


def overlay(
    axes: Any, example: Example, values: Array, level: recipe.Level, limits: tuple[float, float] | None
) -> None:
    """Draw a level's map over its image, each cell where it looks; what pads the image is cut off."""
    height, width = example.size
    picture(axes, example.pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    stride = 2 ** int(level[1:])
    rows, columns = -(-height // stride), -(-width // stride)
    least, greatest = limits or (float(values[:rows, :columns].min()), float(values[:rows, :columns].max()))
    extent = (0, values.shape[1] * stride, values.shape[0] * stride, 0)
    axes.imshow(values, cmap=HEAT, vmin=least, vmax=max(greatest, least + 1e-12), alpha=STRENGTH, extent=extent)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def map_numbers(shown: Sequence[Example], panels: Sequence[Panel]) -> Numbers:
    """Return every cell of every map."""
    rows: list[Row] = [
        (example.name, panel.key, row, column, float(value))
        for number, example in enumerate(shown)
        for panel in panels
        for (row, column), value in np.ndenumerate(panel.maps[number])
    ]
    return Numbers(("image", "panel", "row", "column", "value"), rows)

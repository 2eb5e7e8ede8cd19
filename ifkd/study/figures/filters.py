"""FDR's learned filters: which frequencies of each level they raise or lower."""

from pathlib import Path
from typing import cast

import numpy as np

from ifkd.detections import Array
from ifkd.fusion.frequency import FrequencyFilter
from ifkd.methods.ifkd import IfkdMethod
from ifkd.study.figures.drawing import AROUND, OKABE_ITO, PAGE_INCHES, Numbers, Row, save, sheet

NAME = "filters"
SIDE = 64
"""Of the imagined map at whose frequencies the filters are shown."""
RINGS = 24
"""Of radial frequency, from 0 to 1/2."""
MINIMAL_SPREAD = 0.02
"""Least range of the colours around 1, so that a filter that learned nothing looks it."""


def factors_of(method: IfkdMethod) -> dict[str, Array]:
    """Return each level's factors by channel, vertical frequency (-1/2 to 1/2) and horizontal frequency (0 to 1/2)."""
    found = {}
    for level, module in method.filters.items():
        values = cast("FrequencyFilter", module).factors(SIDE, SIDE).detach().abs().float().cpu().numpy()
        whole = np.broadcast_to(values, (values.shape[0], SIDE, SIDE // 2 + 1))
        found[level] = np.fft.fftshift(whole, axes=1)
    return found


def frequencies() -> tuple[Array, Array]:
    """Return the vertical and the horizontal frequencies of `factors_of`, cycles per cell."""
    return np.fft.fftshift(np.fft.fftfreq(SIDE)), np.fft.rfftfreq(SIDE)


def by_radius(factors: Array) -> tuple[Array, Array]:
    """Return radial frequencies and, for each, a level's mean factor over channels and directions."""
    vertical, horizontal = frequencies()
    radius = np.hypot(vertical[:, None], horizontal[None])
    ring = np.minimum((radius * 2 * RINGS).astype(int), RINGS)
    counts = np.bincount(ring.ravel(), minlength=RINGS + 1)[:RINGS]
    sums = np.bincount(ring.ravel(), weights=factors.mean(0).ravel(), minlength=RINGS + 1)[:RINGS]
    return (np.arange(RINGS) + 0.5) / (2 * RINGS), sums / counts


def draw_filters(method: IfkdMethod, folder: Path) -> list[Path]:
    """Write each level's filter as a map of frequencies, mean over channels, and all of them by radial frequency.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    found = factors_of(method)
    means = {level: factors.mean(0) for level, factors in found.items()}
    spread = max(MINIMAL_SPREAD, *(float(np.abs(mean - 1).max()) for mean in means.values()))
    widths = [*[0.55] * len(found), 1.5]
    with sheet(PAGE_INCHES, 1.9, columns=len(found) + 1, width_ratios=widths) as (figure, grid):
        images = []
        for axes, (level, mean) in zip(grid[0], means.items(), strict=False):
            limits = {"vmin": 1 - spread, "vmax": 1 + spread, "extent": (0, 0.5, 0.5, -0.5)}
            images.append(axes.imshow(mean, cmap=AROUND, **limits))
            axes.set_title(level.upper())
            axes.set_xticks([0, 0.5])
            axes.set_yticks([-0.5, 0, 0.5] if axes is grid[0, 0] else [])
        grid[0, 0].set_ylabel("vertical frequency")
        grid[0, len(found) // 2].set_xlabel("horizontal frequency, cycles per cell")
        figure.colorbar(images[0], ax=list(grid[0, : len(found)]), shrink=0.8, pad=0.02)
        profile = grid[0, -1]
        for number, (level, factors) in enumerate(found.items()):
            profile.plot(*by_radius(factors), color=OKABE_ITO[number % len(OKABE_ITO)], label=level.upper())
        profile.axhline(1, color="0.6", linewidth=0.6)
        profile.set_xlabel("radial frequency")
        profile.set_ylabel("factor, mean over channels")
        profile.legend(ncols=2, handlelength=1.2, columnspacing=0.8)
        return save(figure, _numbers(found), folder, NAME)


def _numbers(found: dict[str, Array]) -> Numbers:
    vertical, horizontal = frequencies()
    rows: list[Row] = [
        (level, float(vertical[row]), float(horizontal[column]), float(mean), float(factors[:, row, column].std()))
        for level, factors in found.items()
        for (row, column), mean in np.ndenumerate(factors.mean(0))
    ]
    return Numbers(("level", "vertical_frequency", "horizontal_frequency", "mean", "deviation_over_channels"), rows)

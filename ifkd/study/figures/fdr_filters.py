"""FDR's learned filters: which frequencies of each level they raise or lower."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ifkd.core.detections import Array
from ifkd.distillation.fdr import FrequencyFilter
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.study.figures.drawing import AROUND, MARKERS, OKABE_ITO, PAGE_INCHES, Numbers, Row, save, sheet

NAME = "filters"
MINIMAL_SPREAD = 0.02
"""Least range of the colors around 1, so that a filter that learned nothing looks it."""


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """One level's filter, at the frequencies of its maps in training."""

    side: int
    """Cells of those maps along a side."""
    factors: Array
    """[channels, vertical frequency from -1/2, horizontal frequency from 0 to 1/2]; moduli, when they are complex."""

    @property
    def vertical(self) -> Array:
        """Cycles per cell."""
        return np.fft.fftshift(np.fft.fftfreq(self.side))

    @property
    def horizontal(self) -> Array:
        """Cycles per cell."""
        return np.fft.rfftfreq(self.side)

    def by_radius(self) -> tuple[Array, Array]:
        """Return radial frequencies, in steps of one wave a map, and the mean factor over channels and directions."""
        waves = np.round(np.hypot(self.vertical[:, None], self.horizontal[None]) * self.side).astype(int)
        most = self.side // 2 + 1
        inside = waves < most
        counts = np.bincount(waves[inside], minlength=most)
        sums = np.bincount(waves[inside], weights=self.factors.mean(0)[inside], minlength=most)
        return np.arange(most) / self.side, sums / counts


def spectra(method: IfkdMethod, tile_px: int) -> dict[str, Spectrum]:
    """Return each filtered level's filter; `tile_px` is the side of the tiles it was trained on."""
    found = {}
    for level, module in method.filters.items():
        side = -(-tile_px // 2 ** int(level[1:]))
        values = cast("FrequencyFilter", module).factors(side, side).detach().abs().float().cpu().numpy()
        whole = np.broadcast_to(values, (values.shape[0], side, side // 2 + 1))
        found[level] = Spectrum(side, np.fft.fftshift(whole, axes=1))
    return found


def draw_filters(found: Mapping[str, Spectrum], folder: Path) -> list[Path]:
    """Write each level's filter as a map of frequencies, mean over channels, and all of them by radial frequency.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    means = {level: one.factors.mean(0) for level, one in found.items()}
    spread = max(MINIMAL_SPREAD, *(float(np.abs(mean - 1).max()) for mean in means.values()))
    widths = [*[0.55] * len(found), 1.5]
    with sheet(PAGE_INCHES, 1.9, columns=len(found) + 1, width_ratios=widths) as (figure, grid):
        images = []
        for axes, (level, mean) in zip(grid[0], means.items(), strict=False):
            half = 0.5 / found[level].side
            extent = (-half, 0.5 + half, 0.5 - half, -0.5 - half)
            images.append(
                axes.imshow(mean, cmap=AROUND, vmin=1 - spread, vmax=1 + spread, extent=extent, aspect="auto")
            )
            axes.set_title(level.upper())
            axes.set_xticks([0, 0.5])
            axes.set_yticks([-0.5, -0.25, 0, 0.25] if axes is grid[0, 0] else [])
        grid[0, 0].set_ylabel("vertical frequency")
        grid[0, len(found) // 2].set_xlabel("horizontal frequency, cycles per cell")
        figure.colorbar(images[0], ax=list(grid[0, : len(found)]), shrink=0.8, pad=0.02)
        profile = grid[0, -1]
        for number, (level, one) in enumerate(found.items()):
            style = {"color": OKABE_ITO[number], "marker": MARKERS[number], "markersize": 2.5}
            profile.plot(*one.by_radius(), label=level.upper(), **style)
        profile.axhline(1, color="0.6", linewidth=0.6, zorder=0)
        profile.set_xlabel("radial frequency, cycles per cell")
        profile.set_ylabel("factor, mean over channels")
        profile.legend(ncols=2, handlelength=1.4, columnspacing=0.8)
        return save(figure, _numbers(found), folder, NAME)


def _numbers(found: Mapping[str, Spectrum]) -> Numbers:
    rows: list[Row] = [
        (
            level,
            float(one.vertical[row]),
            float(one.horizontal[column]),
            float(mean),
            float(one.factors[:, row, column].std()),
        )
        for level, one in found.items()
        for (row, column), mean in np.ndenumerate(one.factors.mean(0))
    ]
    return Numbers(("level", "vertical_frequency", "horizontal_frequency", "mean", "deviation_over_channels"), rows)

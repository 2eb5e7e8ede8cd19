"""Figure of FDR's learned filters: the factor of each frequency at each pyramid level."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ifkd.core.detections import Array
from ifkd.distillation.fdr import FrequencyFilter
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.study.figures import plotting
from ifkd.study.figures.plotting import FigureData, Row

NAME = "fdr-filters"
MIN_COLOR_RANGE = 0.02
"""Minimum distance of the color limits from 1, so that an unchanged filter has one color."""


@dataclass(frozen=True, slots=True, eq=False)
class FrequencyResponse:
    """The filter of one pyramid level, at the frequencies of its feature maps in training."""

    side: int
    """Side of the feature maps, cells."""
    factors: Array
    """[channels, vertical frequency from -1/2, horizontal frequency from 0 to 1/2]; moduli of complex factors."""

    @property
    def vertical(self) -> Array:
        """Vertical frequencies, cycles per cell."""
        return np.fft.fftshift(np.fft.fftfreq(self.side))

    @property
    def horizontal(self) -> Array:
        """Horizontal frequencies, cycles per cell."""
        return np.fft.rfftfreq(self.side)

    def radial_profile(self) -> tuple[Array, Array]:
        """Return radial frequencies, cycles per cell, and the mean factor over channels and directions of each."""
        rings = np.round(np.hypot(self.vertical[:, None], self.horizontal[None]) * self.side).astype(int)
        count = self.side // 2 + 1
        inside = rings < count
        cells = np.bincount(rings[inside], minlength=count)
        sums = np.bincount(rings[inside], weights=self.factors.mean(0)[inside], minlength=count)
        return np.arange(count) / self.side, sums / cells


def frequency_responses(method: IfkdMethod, tile_px: int) -> dict[str, FrequencyResponse]:
    """Return the filter of each filtered level; `tile_px` is the side of the training tiles."""
    responses = {}
    for level, module in method.filters.items():
        side = -(-tile_px // 2 ** int(level[1:]))
        values = cast("FrequencyFilter", module).factors(side, side).detach().abs().float().cpu().numpy()
        factors = np.broadcast_to(values, (values.shape[0], side, side // 2 + 1))
        responses[level] = FrequencyResponse(side, np.fft.fftshift(factors, axes=1))
    return responses


def draw_filters(responses: Mapping[str, FrequencyResponse], folder: Path) -> list[Path]:
    """Write each level's filter as a map of frequencies, mean over channels, and all filters by radial frequency."""
    means = {level: one.factors.mean(0) for level, one in responses.items()}
    limit = max(MIN_COLOR_RANGE, *(float(np.abs(mean - 1).max()) for mean in means.values()))
    widths = [*[0.55] * len(responses), 1.5]
    with plotting.subplots(plotting.PAGE_INCHES, 1.9, columns=len(widths), width_ratios=widths) as (figure, grid):
        images = []
        for axes, (level, mean) in zip(grid[0], means.items(), strict=False):
            half = 0.5 / responses[level].side
            extent = (-half, 0.5 + half, 0.5 - half, -0.5 - half)
            limits = {"vmin": 1 - limit, "vmax": 1 + limit}
            images.append(axes.imshow(mean, cmap=plotting.DIVERGING_CMAP, extent=extent, aspect="auto", **limits))
            y_ticks = [-0.5, -0.25, 0, 0.25] if axes is grid[0, 0] else []
            axes.set(title=level.upper(), xticks=[0, 0.5], yticks=y_ticks)
        grid[0, 0].set_ylabel("vertical frequency")
        grid[0, len(responses) // 2].set_xlabel("horizontal frequency, cycles per cell")
        figure.colorbar(images[0], ax=list(grid[0, : len(responses)]), shrink=0.8, pad=0.02)
        profile = grid[0, -1]
        for number, (level, one) in enumerate(responses.items()):
            style = {"color": plotting.OKABE_ITO[number], "marker": plotting.MARKERS[number], "markersize": 2.5}
            profile.plot(*one.radial_profile(), label=level.upper(), **style)
        profile.axhline(1, color="0.6", linewidth=0.6, zorder=0)
        profile.set(xlabel="radial frequency, cycles per cell", ylabel="factor, mean over channels")
        profile.legend(ncols=2, handlelength=1.4, columnspacing=0.8)
        return plotting.save_figure(figure, _filter_data(responses), folder, NAME)


def _filter_data(responses: Mapping[str, FrequencyResponse]) -> FigureData:
    rows: list[Row] = []
    for level, one in responses.items():
        for (row, column), mean in np.ndenumerate(one.factors.mean(0)):
            values = one.vertical[row], one.horizontal[column], mean, one.factors[:, row, column].std()
            rows.append((level, *map(float, values)))
    return FigureData(("level", "vertical_frequency", "horizontal_frequency", "mean", "std_over_channels"), rows)

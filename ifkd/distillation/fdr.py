"""FDR, frequency-domain reconstruction: low frequencies are kept where the teacher is confident (eqs 3-8, Algorithm 1).

Properties: with a mask of ones and no filter the output is the input, for every r; with r = 0 the mask weights only
the mean of each channel; without a filter the output is linear in the features; a filter keeps each channel's energy.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.models.detector import FeatureMap, LocationMap, LogitMap

GFNET_DEVIATION = 0.02
SMALLEST_ENERGY = 1e-24


def feature_richness(logits: LogitMap) -> LocationMap:
    """Return M_FRS, the largest class probability at each location, without gradient (ref. 8 of the paper)."""
    return logits.detach().float().sigmoid().amax(dim=1, keepdim=True)


def low_pass(features: FeatureMap, r: float) -> FeatureMap:
    """Return the low frequencies of float32 maps: those with max(|u|, |v|) <= r·min(height, width)/2 (eq. 4).

    u and v are signed integer frequencies; for odd sizes the window is therefore symmetric and the result real.
    Columns and rows are projected on the few sines and cosines of the window, which is cheaper than an FFT.
    """
    height, width = features.shape[2:]
    limit = int(r * min(height, width) / 2)
    rows, columns = (_fourier_basis(length, limit, features.dtype, features.device) for length in (height, width))
    coefficients = rows.T @ (features @ columns)
    return (rows @ coefficients) @ columns.T


@lru_cache(maxsize=64)
def _fourier_basis(length: int, limit: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "length waves"]:
    """Return the sines and cosines of integer frequencies up to `limit` as orthonormal columns."""
    phase = torch.arange(length, dtype=torch.float64)[:, None] * (2 * math.pi / length)
    frequencies = torch.arange(1, min(limit, (length - 1) // 2) + 1, dtype=torch.float64)
    waves = [torch.full((length, 1), length**-0.5, dtype=torch.float64)]
    waves += [wave(phase * frequencies) * (2 / length) ** 0.5 for wave in (torch.cos, torch.sin)]
    if length % 2 == 0 and limit >= length // 2:
        waves.append((phase * (length // 2)).cos() * length**-0.5)
    return torch.cat(waves, dim=1).to(device, dtype)


def reconstruct(features: FeatureMap, mask: LocationMap | None, *, r: float) -> FeatureMap:
    """Return FDR(features) in float32 without the filter (eqs 3-7).

    `mask` is M_FRS, None a mask of ones; r is the half side of the low-pass window as a fraction of the half map. By
    linearity, the spectrum whose low part is weighted by `mask` is the spectrum of `features - low·(1 - mask)`, so
    that no Fourier transform is needed.
    """
    with torch.autocast(features.device.type, enabled=False):
        result = features.float()
        return result if mask is None else torch.addcmul(result, low_pass(result, r), mask.float() - 1)


class FrequencyFilter(nn.Module):
    """W, the learnable filter of eq. 8: one factor for each channel (`channel`), or also for each frequency (`grid`).

    `grid` has the factors on a base grid of normalized frequencies (rows -1/2 to 1/2, columns 0 to 1/2), which is
    sampled bilinearly at the map's frequencies: no parameter depends on the image size.
    """

    def __init__(self, channels: int, config: recipe.FdrOptions) -> None:
        """Initialize with ones or with GFNet's small random values."""
        super().__init__()
        shape: tuple[int, ...] = (channels, *config.grid) if config.filter == "grid" else (channels, 1, 1)
        parts = (*shape, 2) if config.filter_complex else shape
        values = torch.randn(parts) * GFNET_DEVIATION
        if config.filter_init == "ones":
            values = torch.zeros(parts)
            (values[..., 0] if config.filter_complex else values).fill_(1.0)
        self.weight = nn.Parameter(values, requires_grad=config.filter_trainable)
        self._norm = config.filter_norm
        self._complex = config.filter_complex

    def forward(self, features: FeatureMap, *, like: FeatureMap | None = None) -> FeatureMap:
        """Return the filtered maps in float32; with `like`, by the factors that are normalized for those maps."""
        with torch.autocast(features.device.type, enabled=False):
            filtered = self._multiply(features.float())
            if self._norm != "energy":
                return filtered
            before, after = (features, filtered) if like is None else (like.float(), self._multiply(like.float()))
            energies = [maps.float().square().sum((2, 3), keepdim=True) for maps in (before, after)]
            return filtered * (energies[0] / energies[1].clamp_min(SMALLEST_ENERGY)).sqrt()

    def _multiply(self, features: FeatureMap) -> FeatureMap:
        """Return maps whose spectrum is multiplied by `factors`."""
        height, width = features.shape[2:]
        spectrum = torch.fft.rfft2(features, norm="ortho") * self.factors(height, width)
        return torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")

    def factors(self, height: int, width: int) -> Tensor:
        """Return the factors of a map's half spectrum, [channels, height, width // 2 + 1] or [channels, 1, 1].

        They are not normalized for the energy of a map.
        """
        weight = torch.view_as_complex(self.weight) if self._complex else self.weight
        if self._norm == "rms":
            weight = weight / weight.abs().square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        if weight.shape[1:] == (1, 1):
            return weight
        rows, columns = weight.shape[1:]
        row_positions = (torch.fft.fftfreq(height, device=weight.device) + 0.5) * rows
        column_positions = torch.fft.rfftfreq(width, device=weight.device) * 2 * (columns - 1)
        by_row = _linear_weights(row_positions, rows, periodic=True).to(weight.dtype)
        by_column = _linear_weights(column_positions, columns, periodic=False).to(weight.dtype)
        return by_row @ weight @ by_column.T


def _linear_weights(positions: Tensor, nodes: int, *, periodic: bool) -> Float[Tensor, "positions nodes"]:
    """Return the matrix that interpolates values at `nodes` 0, 1, 2… linearly at fractional `positions`."""
    below = positions.floor()
    fraction = positions - below
    low = below.long() % nodes
    high = (low + 1) % nodes if periodic else (low + 1).clamp(max=nodes - 1)
    weights = functional.one_hot(low, nodes) * (1 - fraction)[:, None]
    return weights + functional.one_hot(high, nodes) * fraction[:, None]

"""Frequency responses of FDR's filters."""

import numpy as np
import pytest

from ifkd.study.figures.fdr_filters import FrequencyResponse


def test_the_radial_profile_is_the_mean_over_rings() -> None:
    factors = np.random.default_rng(0).normal(1, 0.1, (3, 8, 5))
    frequencies, mean = FrequencyResponse(8, factors).radial_profile()
    assert frequencies == pytest.approx(np.arange(5) / 8)
    vertical, horizontal = np.meshgrid(np.arange(-4, 4), np.arange(5), indexing="ij")
    for index in range(5):
        ring = np.abs(np.hypot(vertical, horizontal) - index) < 0.5
        assert mean[index] == pytest.approx(factors[:, ring].mean())

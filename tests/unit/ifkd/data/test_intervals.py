"""Confidence intervals. Oracle: scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from ifkd.data.intervals import poisson_interval, wilson_interval


@given(st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson(counts):
    expected = binomtest(*counts).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_trials_there_is_no_interval():
    assert wilson_interval(0, 0) is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 99, 1000, 20_000])
def test_poisson(count):
    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    assert poisson_interval(count) == pytest.approx((low, chi2.ppf(0.975, 2 * count + 2) / 2), rel=1e-8)

"""Bound on the loss of a screen: it holds on simulated scenes, and the chosen threshold is the largest within it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from export.screen.conformal import RiskLimit, hoeffding_bentkus_bound, mean_scene_loss
from ifkd.core.detections import Array

SEEDS = st.integers(0, 2**32 - 1)


def random_scenes(rng: np.random.Generator, count: int) -> list[Array]:
    """Return scores of scenes of unequal difficulty and size: the scores of a scene depend on each other."""
    difficulty, sizes = rng.beta(1, 6, count), rng.integers(1, 12, count)
    return [(1 - rng.random(n) ** 2 * hard).astype(np.float32) for hard, n in zip(difficulty, sizes, strict=True)]


def expected_losses(thresholds: Array) -> Array:
    """Return the expected loss of a scene at each threshold, in closed form but for the difficulty's integral."""
    # P(1 - u² h < t) = P(u² > (1 - t) / h) = 1 - sqrt((1 - t) / h) where h > 1 - t.
    hard = np.random.default_rng(99).beta(1, 6, 10_000)
    margin = 1 - thresholds[:, None]
    return np.where(hard > margin, 1 - np.sqrt(np.minimum(1, margin / np.maximum(hard, 1e-12))), 0).mean(axis=1)


def calibrated_losses(limit: RiskLimit, *, draws: int, scenes: int) -> Array:
    """Return the expected loss at the threshold of each of many calibrations; no threshold loses nothing."""
    rng = np.random.default_rng(0)
    chosen = [limit.largest_threshold(random_scenes(rng, scenes)) for _ in range(draws)]
    grid = np.linspace(0, 1, 501)
    losses = expected_losses(grid)
    return np.array([0.0 if one is None else np.interp(one, grid, losses) for one in chosen])


def test_the_expected_loss_is_within_the_limit_on_average_over_calibrations() -> None:
    losses = calibrated_losses(RiskLimit(0.05, None), draws=1000, scenes=60)
    error = losses.std() / len(losses) ** 0.5
    assert 0.03 < losses.mean() <= 0.05 + 3 * error  # not trivially: the limit is nearly reached
    assert (losses > 0.05).mean() > 0.1  # and without a confidence, single calibrations exceed it


def test_with_a_confidence_few_calibrations_exceed_the_limit() -> None:
    losses = calibrated_losses(RiskLimit(0.05, 0.9), draws=1000, scenes=200)
    assert losses.mean() > 0.02
    assert (losses > 0.05).mean() <= 0.1 + 3 * (0.1 * 0.9 / 1000) ** 0.5


def test_a_wrong_bound_fails_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean loss without a margin exceeds the limit in half of the calibrations."""
    monkeypatch.setattr(RiskLimit, "is_met", lambda self, mean_loss, _scenes: mean_loss <= self.max_loss)
    losses = calibrated_losses(RiskLimit(0.05, 0.9), draws=1000, scenes=200)
    assert (losses > 0.05).mean() > 0.2


@given(SEEDS, st.sampled_from([None, 0.9]), st.sampled_from([0.02, 0.1, 0.3]))
def test_the_threshold_is_the_largest_that_satisfies_the_limit(
    seed: int, confidence: float | None, max_loss: float
) -> None:
    limit = RiskLimit(max_loss, confidence)
    rng = np.random.default_rng(seed)
    scores = random_scenes(rng, int(rng.integers(1, 20)))
    satisfied = [
        threshold
        for threshold in np.unique(np.concatenate(scores)).tolist()
        if limit.bound(mean_scene_loss(scores, threshold), len(scores)) <= max_loss
    ]
    assert limit.largest_threshold(scores) == max(satisfied, default=None)


@given(SEEDS)
def test_a_higher_threshold_never_loses_less_and_0_loses_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = random_scenes(rng, 8)
    losses = [mean_scene_loss(scores, threshold) for threshold in np.sort(rng.random(20))]
    assert losses == sorted(losses)
    assert mean_scene_loss(scores, 0.0) == 0
    assert mean_scene_loss([np.zeros(3, np.float32)], 0.0) == 0


@pytest.mark.parametrize("confidence", [None, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("max_loss", [0.005, 0.01, 0.1])
def test_the_number_of_scenes_needed_is_the_smallest(confidence: float | None, max_loss: float) -> None:
    limit = RiskLimit(max_loss, confidence)
    scenes = limit.scenes_needed
    perfect = [np.ones(2, np.float32)]
    assert limit.largest_threshold(perfect * scenes) == 1.0
    assert limit.largest_threshold(perfect * (scenes - 1)) is None


def test_the_published_numbers_of_scenes() -> None:
    """n/(n+1) · 0 + 1/(n+1) ≤ 0.005 from 199 scenes on; 0.995ⁿ ≤ 0.1 from 460 on."""
    assert RiskLimit(0.005, None).scenes_needed == 199
    assert RiskLimit(0.005, 0.9).scenes_needed == 460


def test_without_scenes_there_is_no_threshold() -> None:
    assert RiskLimit(0.5, None).largest_threshold([]) is None


@pytest.mark.parametrize(("lost", "scenes"), [(0, 100), (1, 500), (7, 300), (40, 100)])
def test_the_bound_is_at_most_that_of_hoeffding_and_bentkus(lost: int, scenes: int) -> None:
    """At the bound, the smaller of both tail probabilities is 1 - confidence; scipy computes the binomial one."""
    bound = hoeffding_bentkus_bound(lost / scenes, scenes, confidence=0.9)
    mean = lost / scenes
    entropy = sum(part * np.log(part / whole) for part, whole in ((mean, bound), (1 - mean, 1 - bound)) if part)
    tails = np.exp(-scenes * entropy), np.e * binom.cdf(lost, scenes, bound)
    assert min(tails) == pytest.approx(0.1, rel=1e-6)
    assert bound > mean

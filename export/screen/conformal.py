"""Bound on the fraction of detections that a screen loses, and the largest threshold that satisfies it.

The unit is the scene, because the objects of a scene are not independent. The loss of a scene, between 0 and 1, is the
fraction of its detections that are lost. It never decreases with the threshold, so that both methods hold without a
correction for the number of thresholds: conformal risk control (Angelopoulos et al. 2022) bounds the expected loss on
average over draws of the calibration's scenes, and risk-controlling prediction sets (Bates et al. 2021) with the bound
of Hoeffding and Bentkus do so with a stated probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array

STEPS = 60
"""Bisections of the upper bound; the interval becomes smaller than the spacing of float64."""


@dataclass(frozen=True, slots=True)
class RiskLimit:
    """The limit of the expected loss of a scene."""

    max_loss: float
    """Largest acceptable expected loss, above 0 and below 1."""
    confidence: float | None
    """Probability with which the limit holds, over draws of the calibration's scenes; None for the limit on average."""

    @property
    def scenes_needed(self) -> int:
        """Number of scenes of which none loses anything that satisfies the limit."""
        if self.confidence is None:
            return math.ceil(round(1 / self.max_loss - 1, 9))
        return math.ceil(round(math.log(1 - self.confidence) / math.log(1 - self.max_loss), 9))

    def is_met(self, mean_loss: float, scenes: int) -> bool:
        """Return whether the bound is within the limit."""
        if self.confidence is None:
            return self.bound(mean_loss, scenes) <= self.max_loss
        return _tail_probability(mean_loss, scenes, self.max_loss) <= 1 - self.confidence

    def bound(self, mean_loss: float, scenes: int) -> float:
        """Return the upper bound of the expected loss, given the mean loss of a number of scenes."""
        if self.confidence is None:
            return min(1.0, (scenes * mean_loss + 1) / (scenes + 1))
        return hoeffding_bentkus_bound(mean_loss, scenes, confidence=self.confidence)

    def largest_threshold(self, scores: Sequence[Array]) -> float | None:
        """Return the largest threshold whose bound is within the limit, or None.

        `scores` are the objectness of the detections of each scene, at least one a scene.
        """
        found, counts = np.concatenate([*scores, []]), [len(one) for one in scores]
        order = np.argsort(found, kind="stable")
        losses = np.repeat([1 / count for count in counts], counts)[order].cumsum() / max(1, len(scores))
        # At a threshold, the detections with a lower score are lost: the loss is that of those before the first equal.
        thresholds, first = np.unique(found[order], return_index=True)
        mean_losses = np.concatenate([[0.0], losses])[first]
        within, above = 0, len(thresholds)
        while within < above:  # the bound increases with the mean loss
            middle = (within + above) // 2
            if self.is_met(float(mean_losses[middle]), len(scores)):
                within = middle + 1
            else:
                above = middle
        return float(thresholds[within - 1]) if within else None


def mean_scene_loss(scores: Sequence[Array], threshold: float) -> float:
    """Return the mean over the scenes of the fraction of detections whose objectness is below the threshold."""
    return float(np.mean([np.mean(one < threshold) for one in scores])) if scores else 0.0


def hoeffding_bentkus_bound(mean: float, count: int, *, confidence: float) -> float:
    """Return the upper confidence bound of the expectation of independent values in [0, 1] (Bates et al. 2021, eq. 9).

    It is the largest expectation under which such a low mean has at least the probability 1 - confidence.
    """
    low, high = mean, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _tail_probability(mean, count, middle) >= 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _tail_probability(mean: float, count: int, expectation: float) -> float:
    """Return the upper bound of the probability of a mean this low or lower: Hoeffding's, or Bentkus's if smaller."""
    if mean >= expectation:
        return 1.0
    if expectation >= 1.0:
        return 0.0
    divergence = (1 - mean) * math.log((1 - mean) / (1 - expectation))
    divergence += mean * math.log(mean / expectation) if mean > 0 else 0.0
    return min(1.0, math.exp(-count * divergence), math.e * _binomial_cdf(count * mean, count, expectation))


def _binomial_cdf(successes: float, count: int, probability: float) -> float:
    """Return the probability of at most so many successes, rounded up, from the ratios of neighboring terms."""
    below = np.arange(1, math.ceil(round(successes, 9)) + 1)
    ratios = (count + 1 - below) / below * (probability / (1 - probability))
    return math.exp(count * math.log1p(-probability) + np.logaddexp.reduce([0.0, *np.log(ratios).cumsum()]))

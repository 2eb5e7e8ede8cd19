"""Confidence intervals of counts: Wilson's for a fraction, the exact one of Poisson's distribution for a number."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from ifkd.core.detections import Array

CONFIDENCE = 0.95
Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """Return the interval of a probability by Wilson (1927); None without trials."""
    if not trials:
        return None
    z = NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0)
    fraction, scale = successes / trials, 1.0 + z * z / trials
    middle = (fraction + z * z / (2.0 * trials)) / scale
    half = z * math.sqrt(fraction * (1.0 - fraction) / trials + (z / (2.0 * trials)) ** 2) / scale
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return (0.0 if successes == 0 else low, 1.0 if successes == trials else high)


def poisson_interval(count: int) -> Interval:
    """Return the exact interval of the mean of a Poisson distribution with this count, by Garwood (1936)."""
    tail = (1.0 - CONFIDENCE) / 2.0
    largest = count + 10.0 * math.sqrt(count + 1.0) + 10.0
    log_factorials = np.append(0.0, np.cumsum(np.log(np.arange(1, count + 1))))
    low = 0.0
    if count:
        low = _bisect(lambda mean: _cumulative(log_factorials[:-1], mean) - (1.0 - tail), largest)
    return low, _bisect(lambda mean: _cumulative(log_factorials, mean) - tail, largest)


def _cumulative(log_factorials: Array, mean: float) -> float:
    """Return the probability of a count below `len(log_factorials)`."""
    logs = np.arange(len(log_factorials)) * math.log(mean) - log_factorials - mean
    return float(np.exp(logs - logs.max()).sum() * math.exp(logs.max()))


def _bisect(decreasing: Callable[[float], float], largest: float) -> float:
    """Return the zero of a decreasing function between 0 and `largest`."""
    low, high = 0.0, largest
    while low < (middle := (low + high) / 2.0) < high:
        low, high = (middle, high) if decreasing(middle) > 0.0 else (low, middle)
    return high

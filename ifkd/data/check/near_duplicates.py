"""Images that occur twice: pixel for pixel by their digests, nearly by their sketches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.check.image_inspection import FileFacts

ALIKE = 0.95
"""Correlation of two sketches from which images are called alike."""
ROWS = 512
"""Images compared with all others at once."""


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that look alike."""

    first: int
    second: int
    """Indices into the images compared; the second is the later one."""
    correlation: float
    """Of their sketches, the best over turns and reflections; 1: alike but for brightness and contrast."""


def copies(facts: Sequence[FileFacts]) -> list[list[int]]:
    """Return the groups of at least two images that are alike pixel for pixel, as indices."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(facts):
        if one.digest is not None:
            groups.setdefault(one.digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(
    facts: Sequence[FileFacts], splits: Sequence[str], *, across: bool, least: float = ALIKE
) -> list[DuplicatePair]:
    """Return for each image its most alike one, where that is alike enough; no pair twice, the most alike first.

    Copies pixel for pixel are left out, and so are flat pictures, which have nothing to compare.

    Args:
        facts: The images.
        splits: Of each image, its split.
        across: Look in other splits; else in the image's own.
        least: Correlation from which images are alike.
    """
    drawn = {index: one.sketch for index, one in enumerate(facts) if one.sketch is not None}
    if len(drawn) < 2:
        return []
    shown, sketches = list(drawn), np.stack(list(drawn.values()))
    digests = _codes([facts[index].digest for index in shown])
    of_split = _codes([splits[index] for index in shown])
    found: dict[tuple[int, int], float] = {}
    turned = [symmetry.reshape(len(shown), -1) for symmetry in _symmetries(sketches)]
    for start in range(0, len(shown), ROWS):
        rows = slice(start, start + ROWS)
        correlation = np.max([turned[0][rows] @ one.T for one in turned], axis=0)
        other = of_split[rows, None] != of_split[None, :]
        correlation[(other != across) | (digests[rows, None] == digests[None, :])] = -1.0
        best = correlation.argmax(axis=1)
        for row, column in enumerate(best.tolist()):
            value = float(correlation[row, column])
            if value >= least:
                first, second = sorted((shown[start + row], shown[column]))
                found[first, second] = max(value, found.get((first, second), 0.0))
    pairs = [DuplicatePair(first, second, min(value, 1.0)) for (first, second), value in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def _codes(values: Sequence[str | None]) -> Array:
    """Return a number for each value, equal where values are."""
    number: dict[str | None, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values])


def _symmetries(sketches: Array) -> list[Array]:
    """Return the sketches in the eight turns and reflections of the square, unchanged ones first."""
    turns = [np.rot90(sketches, turn, axes=(1, 2)) for turn in range(4)]
    return turns + [one[:, :, ::-1] for one in turns]

"""Duplicate images: exact ones by the digest of their pixels, near ones by the correlation of thumbnails."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.check.image_inspection import InspectedFile

MIN_CORRELATION = 0.95
"""Least correlation of the thumbnails of near duplicates."""
BLOCK_ROWS = 512
"""Images compared with all others at once."""


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that look alike."""

    first: int
    second: int
    """Indices of the images; the second is larger."""
    correlation: float
    """Correlation of their thumbnails, the best over rotations and reflections; 1 for identical pixels."""


def exact_duplicates(files: Sequence[InspectedFile]) -> list[list[int]]:
    """Return the groups of images with identical pixels, as indices."""
    groups: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        if file.sha256 is not None:
            groups.setdefault(file.sha256, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(files: Sequence[InspectedFile], splits: Sequence[str], *, across: bool) -> list[DuplicatePair]:
    """Return each image's most similar one if it is a near duplicate, without repeated pairs, most similar first.

    Exact duplicates and flat images are left out.

    Args:
        files: The images.
        splits: Split of each image.
        across: Whether to compare images of different splits, or those of the same split.
    """
    thumbnail_of = {index: file.thumbnail for index, file in enumerate(files) if file.thumbnail is not None}
    if len(thumbnail_of) < 2:
        return []
    indices, thumbnails = list(thumbnail_of), np.stack(list(thumbnail_of.values()))
    digests = _codes([files[index].sha256 for index in indices])
    split_codes = _codes([splits[index] for index in indices])
    found: dict[tuple[int, int], float] = {}
    variants = [variant.reshape(len(indices), -1) for variant in _symmetries(thumbnails)]
    for start in range(0, len(indices), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        correlation = np.max([variants[0][rows] @ variant.T for variant in variants], axis=0)
        differ = split_codes[rows, None] != split_codes[None, :]
        correlation[(differ != across) | (digests[rows, None] == digests[None, :])] = -1.0
        best = correlation.argmax(axis=1)
        for row, column in enumerate(best.tolist()):
            value = float(correlation[row, column])
            if value >= MIN_CORRELATION:
                first, second = sorted((indices[start + row], indices[column]))
                found[first, second] = max(value, found.get((first, second), 0.0))
    pairs = [DuplicatePair(first, second, min(value, 1.0)) for (first, second), value in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def _codes(values: Sequence[str | None]) -> Array:
    """Return an integer for each value, equal for equal values."""
    code: dict[str | None, int] = {}
    return np.array([code.setdefault(value, len(code)) for value in values])


def _symmetries(thumbnails: Array) -> list[Array]:
    """Return the thumbnails in the eight rotations and reflections of the square, the original first."""
    rotations = [np.rot90(thumbnails, turn, axes=(1, 2)) for turn in range(4)]
    return rotations + [one[:, :, ::-1] for one in rotations]

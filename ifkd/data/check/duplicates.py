"""Find duplicate images: exact ones by the digest of their pixels, near ones by the correlation of thumbnails."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.data.check.image_inspection import InspectedFile

MIN_CORRELATION = 0.95
"""Least correlation of the thumbnails of near duplicates."""
BLOCK_ROWS = 512
"""Images compared with all others at once."""


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that are identical or look alike."""

    first: int
    second: int
    """Indices of the images; the second is larger."""
    correlation: float
    """Correlation of their thumbnails, the best over rotations and reflections; 1 for identical pixels."""
    identical: bool


def exact_duplicates(files: Sequence[InspectedFile]) -> list[list[int]]:
    """Return the groups of images with identical pixels, as indices."""
    groups: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        if file.sha256 is not None:
            groups.setdefault(file.sha256, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def duplicate_pairs(files: Sequence[InspectedFile], splits: Sequence[str]) -> list[DuplicatePair]:
    """Return exact duplicates of images and their splits, then near ones in different splits, then near ones in one.

    A near duplicate is an image's most similar one, without exact duplicates and flat images; most similar pairs first.
    """
    groups = exact_duplicates(files)
    exact = [DuplicatePair(group[0], other, 1.0, identical=True) for group in groups for other in group[1:]]
    thumbnail_of = {index: file.thumbnail for index, file in enumerate(files) if file.thumbnail is not None}
    if len(thumbnail_of) < 2:
        return exact
    indices, thumbnails = list(thumbnail_of), np.stack(list(thumbnail_of.values()))
    digests = np.unique([files[index].sha256 or "" for index in indices], return_inverse=True)[1]
    split_codes = np.unique([splits[index] for index in indices], return_inverse=True)[1]
    rotations = [np.rot90(thumbnails, turn, axes=(1, 2)) for turn in range(4)]
    variants = [one.reshape(len(indices), -1) for rotated in rotations for one in (rotated, rotated[:, :, ::-1])]
    found: dict[tuple[bool, int, int], float] = {}
    for start in range(0, len(indices), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        correlation = np.max([variants[0][rows] @ variant.T for variant in variants], axis=0)
        correlation[digests[rows, None] == digests[None, :]] = -1.0
        same_split = split_codes[rows, None] == split_codes[None, :]
        for same in (False, True):
            candidates = np.where(same_split == same, correlation, -1.0)
            for row, column in enumerate(candidates.argmax(axis=1).tolist()):
                value = float(candidates[row, column])
                if value >= MIN_CORRELATION:
                    key = (same, *sorted((indices[start + row], indices[column])))
                    found[key] = max(value, found.get(key, 0.0))
    near = sorted(found.items(), key=lambda item: (item[0][0], -min(item[1], 1.0), *item[0]))
    return [*exact, *(DuplicatePair(*key[1:], min(value, 1.0), identical=False) for key, value in near)]

"""Bands of a scene: runs of tile rows that share no batch with each other, so that each can be looked at anywhere.

A runtime may round a tile differently in another batch. So a batch never holds tiles of two bands; within a band, it
runs across rows. Whoever looks at a band, and when, gives the engine the same batches, and gets the same answer. What
bands share is pixels: the overlap of their tiles, which both read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BATCHES_PER_BAND = 8
"""A band has at least as many full batches, so that the last one, which may be short, costs little."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of tiles to look at, and where to begin so that every batch is that of an unbroken run."""

    row: int
    """The first row read."""
    new_row: int
    """The first row whose tiles count; those above are done, and only fill up the first batch."""
    passed: int
    """Tiles with data of the rows above `new_row` that belong to batches of old."""
    stop_row: int
    """The row after the last one."""


def rows_per_range(columns: int, batch: int) -> int:
    """Return the height of a band, in rows of so many tiles, for batches of so many."""
    return -(-BATCHES_PER_BAND * batch // columns)


def unfinished(rows: int, columns: int, *, batch: int, looked: Mapping[int, int]) -> Iterator[RowRange]:
    """Yield what is left of each band of a grid, from the top.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        batch: Tiles per call of the engine.
        looked: The tiles that the engine saw, by finished row.
    """
    height = rows_per_range(columns, batch)
    for top in range(0, rows, height):
        stop = min(top + height, rows)
        left = next((row for row in range(top, stop) if row not in looked), None)
        if left is None:
            continue
        # Tiles of finished rows that shared a batch with the first unfinished one.
        carried = sum(looked[row] for row in range(top, left)) % batch
        row, above = left, 0
        while above < carried:
            row -= 1
            above += looked[row]
        yield RowRange(row, left, above - carried, stop)


def joined(stretches: Iterator[RowRange]) -> Iterator[RowRange]:
    """Yield stretches with those put together that follow each other without a gap."""
    last: RowRange | None = None
    for one in stretches:
        if last is not None and one.row == one.new_row == last.stop_row:
            last = RowRange(last.row, last.new_row, last.passed, one.stop_row)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last

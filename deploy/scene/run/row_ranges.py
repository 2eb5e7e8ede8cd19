"""Row ranges: consecutive rows of tiles whose batches contain no tile of another range.

A runtime may round a tile differently in another batch. Batches continue across the rows of a range, but never across
ranges. So a range gives the same batches, and the same results, wherever and whenever it runs. Two adjacent ranges both
read the pixels in the overlap of their tiles.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

BATCHES_PER_RANGE = 8
"""Minimum of full batches in a range, so that the last batch, which may be smaller, costs little."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of tiles to process, and where to start reading so that the batches equal those of an uninterrupted run."""

    read_row: int
    """First row to read."""
    first_row: int
    """First row of the results. Rows above it are finished, and only complete the first batch."""
    skip_tiles: int
    """Number of tiles with data to skip at the start: they are in batches that are complete."""
    stop_row: int
    """Row after the last one."""


def rows_per_range(columns: int, batch: int) -> int:
    """Return the number of tile rows in a range, for rows of `columns` tiles and batches of `batch` tiles."""
    return -(-BATCHES_PER_RANGE * batch // columns)


def unfinished_ranges(rows: int, columns: int, *, batch: int, processed: Mapping[int, int]) -> Iterator[RowRange]:
    """Yield the unfinished part of each range of a grid of rows and columns, from top to bottom.

    `processed` is the number of tiles that passed through the engine by finished row.
    """
    height = rows_per_range(columns, batch)
    for top in range(0, rows, height):
        stop = min(top + height, rows)
        first = next((row for row in range(top, stop) if row not in processed), None)
        if first is None:
            continue
        # Tiles of finished rows in the same batch as the first unfinished row.
        carried = sum(processed[row] for row in range(top, first)) % batch
        row, above = first, 0
        while above < carried:
            row -= 1
            above += processed[row]
        yield RowRange(row, first, above - carried, stop)


def join_adjacent(ranges: Iterable[RowRange]) -> list[RowRange]:
    """Return row ranges, with those joined that follow each other without a gap."""
    joined: list[RowRange] = []
    for current in ranges:
        if joined and current.read_row == current.first_row == joined[-1].stop_row:
            joined[-1] = replace(joined[-1], stop_row=current.stop_row)
        else:
            joined.append(current)
    return joined

"""Grid of overlapping tiles, used to slice data sets and to detect in scenes."""

from collections.abc import Iterator
from dataclasses import dataclass

from ifkd.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """A pixel window of a scene; parts outside the scene are padded by the reader."""

    top: int
    """First row."""
    left: int
    """First column."""
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row after the last one."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last one."""
        return self.left + self.width


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Windows of `tile_px` that cover a scene row by row, with an overlap of at least `overlap_px`.

    The last window of a row or column ends at the edge of the scene, or less than `multiple_px` beyond it. In a scene
    smaller than a tile, the only window starts at 0 and extends beyond the scene. Every window has the full tile size.
    """

    size: tuple[int, int]
    """Scene (height, width), pixels."""
    tile_px: tuple[int, int]
    """Tile (height, width), pixels."""
    overlap_px: int
    """Minimum overlap of neighbors in both directions, pixels."""
    multiple_px: tuple[int, int] = (1, 1)
    """Number of pixels of which the first row and the first column of each window are a multiple."""

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self.tile_px) < 1:
            sizes = (self.size, self.tile_px)
            raise ConfigError("A tile grid needs a scene and a tile of at least 1x1 pixels", got=sizes)
        if not 0 <= self.overlap_px < min(self.tile_px):
            raise ConfigError(
                "overlap_px must be at least 0 and smaller than the tile",
                got=f"{self.overlap_px} with tiles of {self.tile_px[0]}x{self.tile_px[1]}",
                hint="Decrease the overlap or increase the tile size.",
            )
        assert all(1 <= one <= side - self.overlap_px for one, side in zip(self.multiple_px, self.tile_px, strict=True))

    @property
    def covered(self) -> tuple[int, int]:
        """(height, width) of the scene with the parts of windows beyond it."""
        return max(self.size[0], self.tops[-1] + self.tile_px[0]), max(self.size[1], self.lefts[-1] + self.tile_px[1])

    @property
    def tops(self) -> list[int]:
        """First row of each tile row, ascending."""
        return _starts(self.size[0], self.tile_px[0], self.overlap_px, self.multiple_px[0])

    @property
    def lefts(self) -> list[int]:
        """First column of each tile column, ascending."""
        return _starts(self.size[1], self.tile_px[1], self.overlap_px, self.multiple_px[1])

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows row by row."""
        for row in self.rows():
            yield from row

    def rows(self) -> Iterator[list[Window]]:
        """Yield the windows of each tile row, from left to right."""
        for top in self.tops:
            yield [Window(top, left, *self.tile_px) for left in self.lefts]


def _starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    if length <= tile:
        return [0]
    last = -(-(length - tile) // multiple) * multiple
    return [*range(0, last, (tile - overlap) // multiple * multiple), last]

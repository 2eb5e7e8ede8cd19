"""A scene is cut into overlapping tiles of one size; training slices and detection use the same grid."""

from collections.abc import Iterator
from dataclasses import dataclass

from ifkd.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels of a scene. It may reach beyond the scene, where a reader pads."""

    top: int
    """First row, pixels from the top of the scene."""
    left: int
    """First column, pixels from the left of the scene."""
    height: int
    """Rows, pixels."""
    width: int
    """Columns, pixels."""

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
    """Windows of `tile_px` that cover a scene, row by row, sharing at least `overlap_px` with their neighbors.

    The last window of a row or column is moved back to end at the scene's border; in a scene smaller than a
    tile the only window starts at 0 and reaches beyond it. Every window has the full tile size.
    """

    size: tuple[int, int]
    """Scene (height, width), pixels."""
    tile_px: tuple[int, int]
    """Tile (height, width), pixels."""
    overlap_px: int
    """Least overlap of neighbors, pixels, in both directions."""

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self.tile_px) < 1:
            raise ConfigError(
                "A tile grid needs a scene and a tile of at least 1x1 pixels", got=(self.size, self.tile_px)
            )
        if not 0 <= self.overlap_px < min(self.tile_px):
            raise ConfigError(
                "overlap_px must be at least 0 and smaller than the tile",
                got=f"{self.overlap_px} with tiles of {self.tile_px[0]}x{self.tile_px[1]}",
                hint="Lower the overlap or raise the tile size.",
            )

    @property
    def tops(self) -> list[int]:
        """First rows of the tile rows, ascending."""
        return _starts(self.size[0], self.tile_px[0], self.overlap_px)

    @property
    def lefts(self) -> list[int]:
        """First columns of the tile columns, ascending."""
        return _starts(self.size[1], self.tile_px[1], self.overlap_px)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows row by row."""
        for row in self.rows():
            yield from row

    def rows(self) -> Iterator[list[Window]]:
        """Yield the windows of each tile row, from left to right."""
        height, width = self.tile_px
        lefts = self.lefts
        for top in self.tops:
            yield [Window(top, left, height, width) for left in lefts]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    stride = tile - overlap
    starts = list(range(0, length - tile, stride))
    return [*starts, length - tile]

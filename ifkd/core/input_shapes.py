"""Input shapes of an exported detector: one tile size, or a range of sizes."""

from dataclasses import dataclass

STEP_PX = 32
"""Tile sides are multiples of this, because a backbone halves them five times."""
MAX_WINDOW_PX = 16_384
"""Largest side of a tile, in an image and after scaling: 0.8 GB as RGB."""


@dataclass(frozen=True, slots=True)
class InputShapes:
    """Tile sizes (height, width) that an exported detector accepts, pixels."""

    opt: tuple[int, int]
    """Size of the training tiles, and the optimal shape of TensorRT profiles."""
    side_range: tuple[int, int] | None = None
    """Minimum and maximum side of dynamic shapes, which accept all multiples of `STEP_PX` between them; None accepts
    only `opt`."""

    @property
    def smallest(self) -> tuple[int, int]:
        """The smallest size."""
        return self.opt if self.side_range is None else (self.side_range[0], self.side_range[0])

    @property
    def largest(self) -> tuple[int, int]:
        """The largest size."""
        return self.opt if self.side_range is None else (self.side_range[1], self.side_range[1])

    @property
    def axes(self) -> tuple[int, int]:
        """Height and width of the network's input, -1 for a dynamic axis."""
        return self.opt if self.side_range is None else (-1, -1)

    def accepts(self, size: tuple[int, ...]) -> bool:
        """Return whether the detector accepts tiles of `size`."""
        if self.side_range is None:
            return size == self.opt
        low, high = self.side_range
        return len(size) == 2 and all(low <= side <= high and side % STEP_PX == 0 for side in size)

    def __str__(self) -> str:
        if self.side_range is None:
            return f"{self.opt[0]} x {self.opt[1]} px (height x width)"
        return f"sides of {self.side_range[0]} to {self.side_range[1]} px, multiples of {STEP_PX}"

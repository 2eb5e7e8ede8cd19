"""Which tiles a detector's files take: of one size, or of every size in a range."""

from dataclasses import dataclass

STEP_PX = 32
"""Sides are multiples of this: a backbone halves them five times."""


@dataclass(frozen=True, slots=True)
class InputShapes:
    """The (height, width) of the tiles that a detector's file takes, pixels."""

    usual: tuple[int, int]
    """What the detector was trained on, and what is measured where nobody asks for another."""
    sides: tuple[int, int] | None = None
    """Least and largest height and width, when it takes all multiples of `STEP_PX` between them; else `usual` alone."""

    @property
    def smallest(self) -> tuple[int, int]:
        """The smallest tile."""
        return self.usual if self.sides is None else (self.sides[0], self.sides[0])

    @property
    def largest(self) -> tuple[int, int]:
        """The largest tile."""
        return self.usual if self.sides is None else (self.sides[1], self.sides[1])

    @property
    def axes(self) -> tuple[int, int]:
        """Height and width as a network's input has them: -1 for an axis that is free."""
        return self.usual if self.sides is None else (-1, -1)

    def takes(self, size: tuple[int, ...]) -> bool:
        """Return whether tiles of this (height, width) are taken."""
        if self.sides is None:
            return size == self.usual
        low, high = self.sides
        return len(size) == 2 and all(low <= side <= high and side % STEP_PX == 0 for side in size)

    def __str__(self) -> str:
        if self.sides is None:
            return f"{self.usual[0]} x {self.usual[1]} px (height x width)"
        return f"sides of {self.sides[0]} to {self.sides[1]} px, multiples of {STEP_PX}"

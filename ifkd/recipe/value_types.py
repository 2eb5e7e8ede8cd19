"""Value types that several parts of a recipe use."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt


def _increasing(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("must be in increasing order")
    return bounds


def _even_rows(grid: tuple[int, int]) -> tuple[int, int]:
    if grid[0] % 2:
        raise ValueError("must have an even number of rows")  # of which one has frequency 0
    return grid


EncoderSide = Annotated[PositiveInt, Field(multiple_of=16)]
"""Side of MobileSAM's input, pixels."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeRange = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_increasing)]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_increasing)]
FilterGrid = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_even_rows)]
"""Rows and columns of a frequency filter; the number of rows is even."""

"""Ranges of numbers that several parts of a recipe share."""

from typing import Annotated

from pydantic import Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


def rising(bounds: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range whose ends are in the wrong order."""
    if bounds[0] > bounds[1]:
        raise ValueError("the range must not fall")
    return bounds


def even_rows(grid: tuple[int, int]) -> tuple[int, int]:
    """Refuse a grid that has no row of its own for frequency 0."""
    if grid[0] % 2:
        raise ValueError("the grid needs an even number of rows, so that one of them is frequency 0")
    return grid

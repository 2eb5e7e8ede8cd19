"""Value types that several parts of a recipe use, and the feature pyramid levels of each detector family."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

Family = Literal["retinanet", "faster_rcnn"]
Level = Literal["p2", "p3", "p4", "p5", "p6", "p7"]
LEVELS: dict[Family, tuple[Level, ...]] = {
    "retinanet": ("p3", "p4", "p5", "p6", "p7"),
    "faster_rcnn": ("p2", "p3", "p4", "p5", "p6"),
}
"""Levels of each family, finest first; level pN has a stride of 2^N pixels."""
LevelChoice = tuple[Level, ...] | Literal["all", "two_finest", "four_finest", "three_coarsest"]
"""Levels by name, or a named subset."""
SUBSETS = {"all": slice(None), "two_finest": slice(2), "four_finest": slice(4), "three_coarsest": slice(-3, None)}


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


def select_levels(choice: LevelChoice, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Return the chosen levels of a detector that has `levels`, finest first."""
    if isinstance(choice, str):
        return levels[SUBSETS[choice]]
    return tuple(level for level in levels if level in choice)

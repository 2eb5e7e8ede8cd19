"""Value types that several parts of a recipe use."""

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

MAX_TOP_K = 3840
"""TensorRT's limit of a top-k."""
MAX_NAME_BYTES = 100


def _increasing(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("must be in increasing order")
    return bounds


def _even_rows(grid: tuple[int, int]) -> tuple[int, int]:
    if grid[0] % 2:
        raise ValueError("must have an even number of rows")  # of which one has frequency 0
    return grid


def _folder_name(name: str) -> str:
    if not name or name.startswith(".") or any(one in "/\\" or not one.isprintable() for one in name):
        raise ValueError("must be the name of a folder, without slashes and without a dot at the start")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"must have at most {MAX_NAME_BYTES} bytes")
    return name


EncoderSide = Annotated[PositiveInt, Field(multiple_of=16)]
"""Side of MobileSAM's input, pixels."""
FolderName = Annotated[str, AfterValidator(_folder_name)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
TopK = Annotated[PositiveInt, Field(le=MAX_TOP_K)]
NonNegativeRange = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_increasing)]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_increasing)]
FilterGrid = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_even_rows)]
"""Rows and columns of a frequency filter; the number of rows is even."""

"""Accepted tile sizes, compared with an enumeration."""

import pytest

from ifkd.core.config import parse
from ifkd.core.errors import ConfigError
from ifkd.core.input_shapes import InputShapes
from ifkd.recipe import ExportOptions


def test_a_fixed_shape_accepts_one_size() -> None:
    shapes = InputShapes((64, 96))
    assert shapes.accepts((64, 96))
    assert not any(shapes.accepts(other) for other in ((96, 64), (64, 64), (64, 96, 3), (64,)))
    assert shapes.smallest == shapes.largest == (64, 96)


def test_a_range_accepts_exactly_the_multiples_of_32_inside() -> None:
    shapes = InputShapes((64, 64), (32, 128))
    accepted = {(h, w) for h in range(200) for w in range(200) if shapes.accepts((h, w))}
    assert accepted == {(h, w) for h in (32, 64, 96, 128) for w in (32, 64, 96, 128)}
    assert (shapes.smallest, shapes.largest) == ((32, 32), (128, 128))
    assert not shapes.accepts((64,))


@pytest.mark.parametrize("sides", [[96, 64], [32, 100], [0, 64]])
def test_an_invalid_range_in_a_recipe_is_refused(sides: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"tile_sides_px"):
        parse({"tile_sides_px": sides}, ExportOptions, source="export")

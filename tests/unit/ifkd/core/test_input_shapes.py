"""Which tiles are taken: a plain enumeration is the oracle."""

import pytest

from ifkd.core.config import parse
from ifkd.core.errors import ConfigError
from ifkd.core.input_shapes import InputShapes
from ifkd.recipe import ExportOptions


def test_one_size_is_taken_alone() -> None:
    sizes = InputShapes((64, 96))
    assert sizes.accepts((64, 96))
    assert not any(sizes.accepts(other) for other in ((96, 64), (64, 64), (64, 96, 3), (64,)))
    assert sizes.smallest == sizes.largest == (64, 96)


def test_every_multiple_of_32_in_the_range_is_taken_and_nothing_else() -> None:
    sizes = InputShapes((64, 64), (32, 128))
    taken = {(h, w) for h in range(200) for w in range(200) if sizes.accepts((h, w))}
    assert taken == {(h, w) for h in (32, 64, 96, 128) for w in (32, 64, 96, 128)}
    assert (sizes.smallest, sizes.largest) == ((32, 32), (128, 128))
    assert not sizes.accepts((64,))


@pytest.mark.parametrize("sides", [[96, 64], [32, 100], [0, 64]])
def test_a_recipe_with_other_sides_is_refused(sides: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"tile_sides_px"):
        parse({"tile_sides_px": sides}, ExportOptions, source="export")

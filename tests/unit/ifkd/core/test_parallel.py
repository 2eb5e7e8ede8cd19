"""Maps over processes keep the order."""

import math

import pytest

from ifkd.core.parallel import parallel_map


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_is_kept(workers: int) -> None:
    with parallel_map(workers) as mapped:
        assert list(mapped(math.sqrt, [4.0, 1.0, 9.0])) == [2.0, 1.0, 3.0]

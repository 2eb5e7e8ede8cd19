"""Accounts sum up, by construction."""

import pytest
from pydantic import ValidationError

from ifkd.data.account import Account, Outcomes, Tally


def test_everything_that_is_neither_changed_nor_dropped_is_kept() -> None:
    outcomes = Outcomes()
    outcomes.change("boxes_cross_border", "a.txt:3")
    outcomes.drop("boxes_without_area", "a.txt:4\n", count=2)
    tally = outcomes.tally(received=10, written=8)
    assert (tally.kept, tally.written, tally.left_out) == (7, 8, 2)
    assert tally.examples["boxes_without_area"] == ("a.txt:4\\n",)
    lines = Account(images=Outcomes().tally(received=1, written=1), objects=tally).lines()
    assert lines == [
        "1 image: 1 unchanged, 0 changed, 0 left out",
        "10 objects: 7 unchanged, 1 changed (1 boxes cross border), 2 left out (2 boxes without area)",
        "  boxes cross border: a.txt:3",
        "  boxes without area: a.txt:4\\n",
    ]


@pytest.mark.parametrize(("received", "written"), [(10, 9), (10, 7), (2, 0)])
def test_refuses_what_does_not_sum_up(received: int, written: int) -> None:
    outcomes = Outcomes()
    outcomes.drop("boxes_without_area", count=2)
    if (received, written) == (2, 0):
        outcomes.drop("files_missing")
    with pytest.raises((AssertionError, ValidationError)):
        outcomes.tally(received=received, written=written)


def test_refuses_a_record_that_does_not_sum_up() -> None:
    with pytest.raises(ValidationError, match="do not sum up"):
        Tally(received=3, kept=1, changed={"a": 1}, dropped={})

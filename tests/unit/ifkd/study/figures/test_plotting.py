"""Files of figures and their data."""

import sys

import numpy as np
import pytest

from ifkd.core.errors import MissingExtraError
from ifkd.study.figures.plotting import FigureData, require_matplotlib


def test_csv_values_represent_float32_exactly() -> None:
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    lines = FigureData(("a",), [(float(value),) for value in values]).csv().splitlines()[1:]
    assert (np.array(lines, np.float32) == values).all()


def test_the_error_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"ifkd\[figures\]"):
        require_matplotlib()

"""The tests run with every annotated shape checked, so that a wrong axis cannot pass unseen."""

from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from ifkd import recipe
from ifkd.distillation.fdr import feature_richness, reconstruct
from ifkd.distillation.hsm import similarity_mask
from ifkd.models import Targets, normalize

ROOT = Path(__file__).parents[2]


def test_every_module_with_shapes_is_checked(pytestconfig: pytest.Config) -> None:
    checked = pytestconfig.getoption("jaxtyping_packages").split(",")
    folders = [ROOT.joinpath(*package.split(".")) for package in checked]
    modules = [path for part in ("ifkd", "export", "deploy") for path in (ROOT / part).rglob("*.py")]
    with_shapes = [path for path in modules if "from jaxtyping import" in path.read_text(encoding="utf-8")]
    assert len(with_shapes) > 20
    assert [path for path in with_shapes if not any(path.is_relative_to(folder) for folder in folders)] == []


def test_a_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="richness"):
        feature_richness(torch.zeros(3, 4))


def test_axes_that_should_agree_must_agree() -> None:
    with pytest.raises(TypeCheckError, match="mask"):
        reconstruct(torch.zeros(2, 8, 5, 7), torch.zeros(2, 1, 7, 5), r=0.1)
    with pytest.raises(TypeCheckError, match="student"):
        similarity_mask(torch.zeros(2, 8, 5, 7), torch.zeros(2, 6, 5, 7), recipe.HsmOptions())


def test_a_wrong_type_of_number_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="tiles"):
        normalize(torch.zeros(1, 3, 4, 4))


def test_values_are_checked_where_they_are_made() -> None:
    with pytest.raises(TypeCheckError, match="boxes"):
        Targets(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), torch.zeros(0, 4))

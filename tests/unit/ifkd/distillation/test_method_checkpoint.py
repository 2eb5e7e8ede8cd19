"""Checkpoints of methods, and intermediate maps of IFKD."""

from pathlib import Path

import pytest
import torch
from method_fixtures import make_batch, method, options, output

from ifkd.core.errors import CheckpointError
from ifkd.distillation.method_checkpoint import load_method_checkpoint, save_method_checkpoint
from ifkd.distillation.methods import Method
from ifkd.models.checkpoint import load_checkpoint

BATCH = make_batch(output("retinanet", 1), output("retinanet", 2))


def perturbed(built: Method) -> Method:
    """Return the method in eval mode after a change of all parameters."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return built.eval()


@pytest.mark.parametrize("name", ["ifkd", "frs", "fkd", "fgd", "fitnet"])
def test_a_loaded_method_equals_the_saved_one(name: str, tmp_path: Path) -> None:
    built = perturbed(method(name, "retinanet"))
    save_method_checkpoint(tmp_path / "method.safetensors", built)
    again = load_method_checkpoint(tmp_path / "method.safetensors")
    assert again.config == built.config
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in built.state_dict().items())
    for key, term in built.losses(BATCH).items():
        assert torch.equal(term.value, again.losses(BATCH)[key].value)


@pytest.mark.parametrize("name", ["at", "pkd", "cwd"])
def test_a_method_without_parameters_writes_no_file(name: str, tmp_path: Path) -> None:
    save_method_checkpoint(tmp_path / "method.safetensors", method(name, "retinanet"))
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "method.safetensors"
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_method_checkpoint(path)
    save_method_checkpoint(path, method("ifkd", "retinanet"))
    with pytest.raises(CheckpointError, match="header"):
        load_checkpoint(path)
    narrow = method("ifkd", "retinanet")
    narrow.config = options("ifkd", adapter={"kernel": 1})
    save_method_checkpoint(path, narrow)
    with pytest.raises(CheckpointError, match="do not match its header"):
        load_method_checkpoint(path)

"""state.pt."""

from pathlib import Path

import pytest
import torch

from ifkd.core.errors import OutputError
from ifkd.training.train_state import TrainState, read_state, restore_state, save_state


def test_a_state_is_restored_as_saved(tmp_path: Path) -> None:
    layer, progress = torch.nn.Linear(2, 2), TrainState(epoch=1, iteration=5, best_map=0.25, train_seconds=2.5)
    save_state(tmp_path / "state.pt", progress, {"layer": layer})
    other = torch.nn.Linear(2, 2)
    state = read_state(tmp_path / "state.pt")
    assert state is not None
    assert restore_state(state, {"layer": other}) == progress
    assert torch.equal(layer.weight, other.weight)
    assert read_state(tmp_path / "absent.pt") is None


def test_states_of_other_versions_and_damaged_states_are_refused(tmp_path: Path) -> None:
    torch.save({"standing": [1, 5, 0.25, 0, 2.5]}, tmp_path / "state.pt")
    with pytest.raises(OutputError, match=r"state\.pt is from another version of ifkd\. Start again with --no-resume"):
        read_state(tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes(b"broken")
    with pytest.raises(OutputError, match=r"state\.pt cannot be read"):
        read_state(tmp_path / "state.pt")

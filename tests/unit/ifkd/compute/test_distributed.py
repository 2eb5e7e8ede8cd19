import pytest
import torch
from torch import Tensor, nn

from ifkd.compute.distributed import broadcast_buffers, process_group
from ifkd.core.errors import TrainingError


class JoinedError(Exception):
    """Raised instead of joining the process group."""


@pytest.mark.parametrize(
    ("restarts", "agent_store", "expected"),
    [("1", "True", TrainingError), ("1", "False", JoinedError), ("0", "True", JoinedError)],
)
def test_restarts_with_a_shared_store_are_refused(
    monkeypatch: pytest.MonkeyPatch, restarts: str, agent_store: str, expected: type[Exception]
) -> None:
    def join(*_: object) -> None:
        raise JoinedError

    monkeypatch.setattr("torch.distributed.init_process_group", join)
    for name, value in (
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("TORCHELASTIC_MAX_RESTARTS", restarts),
        ("TORCHELASTIC_USE_AGENT_STORE", agent_store),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(expected), process_group():
        pass


def test_buffers_are_those_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(value: Tensor, src: int) -> None:
        assert src == 0
        value.fill_(7)

    monkeypatch.setattr("ifkd.compute.distributed._is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.broadcast", broadcast)
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    weights = [parameter.clone() for parameter in module.parameters()]
    broadcast_buffers(module)
    assert all((buffer == 7).all() for buffer in module.buffers())
    assert all(torch.equal(*pair) for pair in zip(weights, module.parameters(), strict=True))

import pytest

from ifkd.compute.distributed import process_group
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

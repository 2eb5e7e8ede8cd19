"""Choice of devices."""

import pytest
import torch

from ifkd.compute.device import gpu_groups


@pytest.mark.parametrize(
    ("gpus", "visible", "size", "groups"),
    [
        (0, None, 1, []),
        (4, None, 1, ["0", "1", "2", "3"]),
        (5, None, 2, ["0,1", "2,3"]),
        (2, "6,7", 1, ["6", "7"]),
        (2, "GPU-a,GPU-b", 2, ["GPU-a,GPU-b"]),
        (1, "3,-1,4", 1, ["3"]),  # CUDA ignores names after an invalid one
        (1, None, 2, []),
    ],
)
def test_gpus_are_grouped_by_their_names_in_cuda_visible_devices(
    gpus: int, visible: str | None, size: int, groups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_groups(size) == groups

"""The table of docs/method.md that maps equations to code: a training step really calls every function."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.models import DetectorOutput, SampledRois

ROOT = Path(__file__).resolve().parents[5]
ROW = re.compile(r"^\| (?P<paper>[^|]*) \| (?P<quantity>[^|]*) \| (?P<code>`ifkd/distillation/[^|]*) \|$", re.MULTILINE)
OPTION = re.compile(r"\(`(?P<name>[\w.]+)(?: = \"(?P<value>\w+)\")?`\)")


def rows() -> list[tuple[str, dict[str, Any]]]:
    """Return `file::name` and the options of each row of the table."""
    section = (ROOT / "docs" / "method.md").read_text("utf-8").split("## 2.")[1].split("The rest of a training step")[0]
    found = []
    for row in ROW.finditer(section):
        options: dict[str, Any] = {}
        if option := OPTION.search(row["quantity"]):
            value: Any = option["value"] or True
            for key in reversed(option["name"].split(".")):
                value = {key: value}
            options = value
        found += [(code, options) for code in re.findall(r"`([^`]+)`", row["code"])]
    return found


def called_functions(options: dict[str, Any]) -> set[str]:
    """Return `file::name` of the functions called while a method is built and computes its losses."""
    called = set()

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/ifkd/distillation/" in frame.f_code.co_filename:
            path = Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()
            called.add(f"{path}::{frame.f_code.co_qualname}")

    torch.manual_seed(0)
    channels = 8

    def output() -> DetectorOutput:
        maps = [tuple(torch.randn(2, n, side, side) for side in (16, 8, 4, 2, 1)) for n in (channels, 3, 12)]
        return DetectorOutput(*maps, [SampledRois([torch.zeros(1, 4)] * 2, torch.randn(2, 4))])

    config = recipe.IfkdOptions.model_validate(options)
    levels = recipe.LEVELS["faster_rcnn"]
    networks = NetworkPair(
        channels, channels, levels, (1.0,) * 5, second_stage=lambda _, boxes: torch.randn(len(boxes), 4)
    )
    batch = DistillationBatch(output(), output(), torch.randn(2, 256, 4, 4), [], 600)
    sys.setprofile(trace)
    try:
        build_method(config, networks).losses(batch)
    finally:
        sys.setprofile(None)
    return called


def test_the_table_is_read() -> None:
    assert len(rows()) >= 20


@pytest.mark.parametrize(("code", "options"), rows())
def test_a_training_step_calls_the_function(code: str, options: dict[str, Any]) -> None:
    assert code in called_functions(options)
    if options:
        assert code not in called_functions({}), "the page marks a function with an option that it does not need"

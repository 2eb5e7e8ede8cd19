"""What a run tells: lines that a resumed run writes again alike, scalars for TensorBoard, a warning in time."""

import json
import logging
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ifkd.core.errors import OutputError
from ifkd.training.metrics_logger import MetricsLogger

PACE = {"images_per_s": 8.0, "memory_mb": 900.0}


def record_of(folder: Path, *, warm_after: int = 0, epoch: int = 0, iteration: int = 0) -> MetricsLogger:
    record = MetricsLogger(folder, warm_after=warm_after)
    record.begin(epoch=epoch, iteration=iteration)
    return record


def test_lines_and_scalars_say_the_same(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    for iteration in range(3):
        record.step(iteration, {"total": 3.0 - iteration, "task/boxes": 1.0}, pace=PACE)
    record.validation(1, 3, {"mean_ap": 0.25})
    record.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1] == {"iteration": 1, "total": 2.0, "task/boxes": 1.0}
    assert lines[3] == {"epoch": 1, "validation": {"mean_ap": 0.25}}
    board = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("total")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert board.Scalars("validation/mean_ap")[0].value == 0.25
    assert {event.value for event in board.Scalars("pace/memory_mb")} == {900.0}


def test_what_was_told_after_the_state_is_taken_back(tmp_path: Path) -> None:
    """Steps 2 and 3 and the second epoch's validation are taken again; a line cut short by a kill goes as well."""
    record = record_of(tmp_path)
    for iteration in range(4):
        record.step(iteration, {"total": float(iteration)}, pace=PACE)
        if iteration % 2:
            record.validation(1 + iteration // 2, iteration + 1, {"mean_ap": 0.1})
    record.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 4, "to')
    time.sleep(1.1)  # TensorBoard reads its files in the order of the seconds in their names
    record = record_of(tmp_path, epoch=1, iteration=2)
    record.step(2, {"total": 20.0}, pace=PACE)
    record.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("iteration", line.get("epoch")) for line in lines] == [0, 1, 1, 2]
    board = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("total")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(("ratio", "warns"), [(0.05, True), (0.2, False), (9.0, False), (20.0, True), (0.0, False)])
def test_an_unhealthy_ratio_warns_once_and_only_when_warm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ratio: float, warns: bool
) -> None:
    record = record_of(tmp_path, warm_after=5)
    with caplog.at_level(logging.WARNING, logger="ifkd.training.metrics_logger"):
        for iteration in range(5):
            record.step(iteration, {"ratio/feature": ratio}, pace=PACE)
        assert not caplog.records
        for iteration in range(5, 12):
            record.step(iteration, {"ratio/feature": ratio}, pace=PACE)
    record.close()
    assert len(caplog.records) == int(warns)
    if warns:
        assert f"feature loss is {ratio:.3g} times the detection loss at iteration 5" in caplog.text


def test_a_ratio_that_jumps_for_one_step_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(tmp_path)
    for iteration in range(20):
        record.step(iteration, {"ratio/feature": 50.0 if iteration == 10 else 1.0}, pace=PACE)
    record.close()
    assert not caplog.records


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*metrics\.jsonl .*Is a directory"):
        record.step(0, {"total": 1.0}, pace=PACE)
    record.close()

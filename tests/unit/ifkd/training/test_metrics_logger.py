"""metrics.jsonl, TensorBoard, and warnings about loss ratios."""

import json
import logging
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ifkd.core.errors import OutputError
from ifkd.training.metrics_logger import MetricsLogger

SPEED = {"images_per_s": 8.0, "memory_mb": 900.0}


def open_logger(folder: Path, *, warn_after: int = 0, epoch: int = 0, iteration: int = 0) -> MetricsLogger:
    metrics = MetricsLogger(folder, warn_after=warn_after)
    metrics.resume(epoch=epoch, iteration=iteration)
    return metrics


def test_lines_and_scalars_are_equal(tmp_path: Path) -> None:
    metrics = open_logger(tmp_path)
    for iteration in range(3):
        metrics.log_step(iteration, {"total": 3.0 - iteration, "task/boxes": 1.0}, speed=SPEED)
    metrics.log_validation(1, 3, {"mean_ap": 0.25})
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1] == {"iteration": 1, "total": 2.0, "task/boxes": 1.0}
    assert lines[3] == {"epoch": 1, "validation": {"mean_ap": 0.25}}
    board = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("total")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert board.Scalars("validation/mean_ap")[0].value == 0.25
    assert {event.value for event in board.Scalars("speed/memory_mb")} == {900.0}


def test_lines_after_the_saved_state_are_removed(tmp_path: Path) -> None:
    """Steps 2 and 3 and the second validation are repeated; an incomplete last line is removed as well."""
    metrics = open_logger(tmp_path)
    for iteration in range(4):
        metrics.log_step(iteration, {"total": float(iteration)}, speed=SPEED)
        if iteration % 2:
            metrics.log_validation(1 + iteration // 2, iteration + 1, {"mean_ap": 0.1})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 4, "to')
    time.sleep(1.1)  # TensorBoard reads its files in the order of the seconds in their names
    metrics = open_logger(tmp_path, epoch=1, iteration=2)
    metrics.log_step(2, {"total": 20.0}, speed=SPEED)
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("iteration", line.get("epoch")) for line in lines] == [0, 1, 1, 2]
    board = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("total")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(("ratio", "warns"), [(0.005, True), (0.02, False), (9.0, False), (20.0, True), (0.0, False)])
def test_a_ratio_outside_the_range_warns_once_after_warm_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ratio: float, warns: bool
) -> None:
    metrics = open_logger(tmp_path, warn_after=5)
    with caplog.at_level(logging.WARNING, logger="ifkd.training.metrics_logger"):
        for iteration in range(5):
            metrics.log_step(iteration, {"gradient/feature": ratio, "ratio/feature": 99.0}, speed=SPEED)
        assert not caplog.records
        for iteration in range(5, 12):
            metrics.log_step(iteration, {"gradient/feature": ratio, "ratio/feature": 99.0}, speed=SPEED)
    metrics.close()
    assert len(caplog.records) == int(warns)
    if warns:
        effect = "rules the training" if ratio > 1 else "has hardly any effect"
        assert (
            f"At iteration 5 the feature loss {effect}: its gradient at the student's pyramid is {ratio:.3g}"
            in caplog.text
        )
        assert 'Set distillation.balance.form = "gradient"' in caplog.text
    assert metrics.gradient_ratios == pytest.approx({"feature": ratio} if ratio else {})


def test_the_ratio_of_a_balanced_term_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = open_logger(tmp_path)
    for iteration in range(5):
        metrics.log_step(
            iteration, {"gradient/feature": 50.0, "factor/feature": 0.01, "gradient/head": 1.0}, speed=SPEED
        )
    metrics.close()
    assert not caplog.records


def test_a_ratio_that_jumps_for_one_step_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = open_logger(tmp_path)
    for iteration in range(20):
        metrics.log_step(iteration, {"gradient/feature": 50.0 if iteration == 10 else 1.0}, speed=SPEED)
    metrics.close()
    assert not caplog.records


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    metrics = open_logger(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*metrics\.jsonl .*Is a directory"):
        metrics.log_step(0, {"total": 1.0}, speed=SPEED)
    metrics.close()

"""Learning curves from metrics.jsonl."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifkd.study.learning_curves import Curve, LearningCurves, average_runs, downsample, read_learning_curves


def test_curves_are_means_over_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [tmp_path / "a", tmp_path / "b"]
    losses = rng.uniform(0.5, 2.0, (2, 90, 3))
    map_by_epoch = rng.uniform(0.0, 0.5, (2, 4))
    for folder, terms, values in zip(folders, losses, map_by_epoch, strict=True):
        folder.mkdir()
        lines: list[dict[str, Any]] = [
            {"iteration": 10 * i, "task/classes": a, "task/boxes": b, "method/feature": c, "raw/feature": 9.0}
            for i, (a, b, c) in enumerate(terms.tolist())
        ]
        lines += [{"epoch": epoch, "validation": {"mean_ap": value}} for epoch, value in enumerate(values.tolist())]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 9')
    curves = read_learning_curves(folders)
    assert curves.validation.x == (0, 1, 2, 3)
    assert curves.validation.mean == pytest.approx(100 * map_by_epoch.mean(0))
    assert curves.validation.low == pytest.approx(100 * map_by_epoch.min(0))
    assert list(curves.losses) == ["task", "feature"]
    task = losses[:, :, :2].sum(-1)
    assert curves.losses["task"].mean == pytest.approx(task.mean(0).reshape(-1, 2).mean(1))
    assert curves.losses["task"].high == pytest.approx(task.max(0).reshape(-1, 2).mean(1))
    assert curves.losses["feature"].x == pytest.approx(np.arange(0, 900, 10).reshape(-1, 2).mean(1))


def test_a_run_without_metrics_has_empty_curves(tmp_path: Path) -> None:
    assert read_learning_curves([tmp_path / "none"]) == LearningCurves(average_runs([]), {})
    assert downsample(average_runs([{1.0: 2.0}])) == Curve((1.0,), (2.0,), (2.0,), (2.0,))

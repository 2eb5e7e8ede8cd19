"""Finished runs of a study."""

from pathlib import Path

import pytest

from ifkd.core.errors import UsageError
from ifkd.study.figures.trained_runs import find_runs


def test_the_ifkd_run_is_found_in_each_kind_of_study(study_folder: Path, tmp_path: Path) -> None:
    """In an ablation, the row with all parts; in a sweep, the first IFKD run; by default, the first seed with IFKD."""

    def linked(name: str, runs: dict[str, str]) -> Path:
        (tmp_path / name).mkdir()
        for label, run in {"teacher": "teacher", **runs}.items():
            (tmp_path / name / label).symlink_to(study_folder / run)
        return tmp_path / name

    ablation = linked("ablation", {"student-5": "student-5", "at-5": "at-5", "at+ede+fdr+hsm-5": "ifkd-5"})
    assert (run := find_runs(ablation).ifkd) is not None
    assert run.label == "at+ede+fdr+hsm"
    sweep = linked("sweep", {"student-4": "student-5", "student-7": "student-5", "alpha=0.06-7": "ifkd-5"})
    runs = find_runs(sweep)
    assert runs.ifkd is not None
    assert (runs.seed, runs.ifkd.label, runs.at) == (7, "alpha=0.06", None)
    assert find_runs(sweep, seed=4).ifkd is None
    with pytest.raises(UsageError, match=r"no finished run alpha=0\.06-4\. Finished runs: student"):
        find_runs(sweep, seed=4, label="alpha=0.06")
    teacher_only = find_runs(linked("teacher_only", {}))
    assert (teacher_only.plain, teacher_only.at, teacher_only.ifkd) == (None, None, None)

"""Find the finished runs in a study's folder that figures compare: the teacher, and the students of one seed."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ifkd.compute.device import best_device
from ifkd.core.errors import UsageError, did_you_mean
from ifkd.models import Detector
from ifkd.models.checkpoint import Checkpoint, build_from, load_checkpoint
from ifkd.recipe import Recipe
from ifkd.study.study_record import TEACHER
from ifkd.study.variants import PARTS, PLAIN
from ifkd.training.run_folder import RESULT, RunFolder

RUN_NAME = re.compile(r"(?P<label>.+)-(?P<seed>\d+)")
IFKD_LABELS = ("ifkd", "+".join(("at", *PARTS)), "+".join(PARTS))
"""Labels of the complete method: in a comparison, and in ablations with and without attention transfer."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a study."""

    label: str
    """Its label in the study's table."""
    folder: RunFolder
    data_root: Path | None = None
    """Present folder of the data set; None for the recipe's."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The best checkpoint."""
        return load_checkpoint(self.folder.best)

    @cached_property
    def detector(self) -> Detector:
        """The detector of the best checkpoint, in eval mode."""
        return build_from(self.checkpoint).to(best_device())

    @property
    def recipe(self) -> Recipe:
        """The recipe of the training, with the present folder of the data set."""
        recipe = self.checkpoint.meta.recipe
        if self.data_root is None:
            return recipe
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": self.data_root})})

    @property
    def method(self) -> dict[str, Any]:
        """The options of the distillation method; empty for plain training."""
        method = self.checkpoint.meta.provenance.get("method")
        return method if isinstance(method, dict) else {}

    @property
    def is_ifkd(self) -> bool:
        """True if the distillation method is IFKD."""
        return self.method.get("name") == "ifkd"


@dataclass(frozen=True, slots=True)
class TrainedRuns:
    """The runs of a study that figures compare."""

    teacher: FinishedRun
    seed: int
    """Seed of the students."""
    plain: FinishedRun | None
    """The student trained without a teacher; None where it is not finished, as for the others."""
    at: FinishedRun | None
    """The student distilled with attention transfer."""
    ifkd: FinishedRun | None
    """The student distilled with IFKD."""


def find_runs(
    study_folder: Path, *, seed: int | None = None, label: str | None = None, data_root: Path | None = None
) -> TrainedRuns:
    """Return the finished runs in a study's folder.

    By default, `seed`, that of the students, is the lowest with an IFKD run, else the lowest; `label`, the variant
    that represents IFKD, is the complete method; `data_root`, the present folder of the data set, is the recipe's.

    Raises:
        UsageError: The folder contains no study, or no run with this seed or label.
    """
    finished = {path.parent.name: RunFolder(path.parent) for path in sorted(study_folder.glob(f"*/{RESULT}"))}
    if TEACHER not in finished:
        expected = "a folder of `ifkd study compare`, `ablate` or `sweep`"
        raise UsageError(f"{study_folder} contains no study with a finished teacher", expected=expected)
    by_seed: dict[int, dict[str, FinishedRun]] = defaultdict(dict)
    for name, folder in finished.items():
        if parts := RUN_NAME.fullmatch(name):
            by_seed[int(parts["seed"])][parts["label"]] = FinishedRun(parts["label"], folder, data_root)
    labels = {known for students in by_seed.values() for known in students}
    if label is not None and label not in labels:
        raise UsageError(f"{study_folder} has no finished run of {label!r}", hint=_hint(label, labels))
    if seed is not None and seed not in by_seed:
        seeds = _listed(map(str, sorted(by_seed)))
        raise UsageError(f"{study_folder} has no finished run with seed {seed}", expected=seeds)
    if seed is None:
        with_ifkd = [known for known in sorted(by_seed) if _ifkd_run(by_seed[known], label) is not None]
        seed = next(iter(with_ifkd or sorted(by_seed)), 0)
    students = by_seed.get(seed, {})
    if label is not None and label not in students:
        raise UsageError(f"{study_folder} has no finished run {label}-{seed}", hint=_hint(label, students))
    teacher = FinishedRun(TEACHER, finished[TEACHER], data_root)
    return TrainedRuns(teacher, seed, students.get(PLAIN.label), students.get("at"), _ifkd_run(students, label))


def _ifkd_run(students: dict[str, FinishedRun], label: str | None) -> FinishedRun | None:
    """Return the run that represents IFKD: that with the given label, a usual label, or the first IFKD run."""
    if label is not None:
        return students.get(label)
    usual = next((students[known] for known in IFKD_LABELS if known in students), None)
    return usual or next((run for run in students.values() if run.is_ifkd), None)


def _hint(wrong: str, known: Iterable[str]) -> str:
    return f"{did_you_mean(wrong, known)} Finished runs: {_listed(known)}".lstrip()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"

"""The runs of a study's folder that figures show: its teacher, and of one seed the students they compare."""

import re
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
from ifkd.study.variant import PARTS, PLAIN
from ifkd.training.run_folder import BEST, RESULT

RUN_NAME = re.compile(r"(?P<label>.+)-(?P<seed>\d+)")
WHOLE = ("ifkd", "+".join(("at", *PARTS)), "+".join(PARTS))
"""Labels of the whole method: compared, and ablated with attention transfer and without."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished run."""

    label: str
    """As the study's table has it."""
    folder: Path
    root: Path | None = None
    """Where its data set lies by now, if not where the recipe says."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its best checkpoint."""
        return load_checkpoint(self.folder / BEST)

    @cached_property
    def detector(self) -> Detector:
        """What it trained, in eval mode."""
        return build_from(self.checkpoint).to(best_device())

    @property
    def recipe(self) -> Recipe:
        """The effective recipe it was trained by, with the data set's present place."""
        told = self.checkpoint.meta.recipe
        if self.root is None:
            return told
        return told.model_copy(update={"data": told.data.model_copy(update={"root": self.root})})

    @property
    def method(self) -> dict[str, Any]:
        """The options of its method, as they really were; nothing for plain training."""
        told = self.checkpoint.meta.provenance.get("method")
        return told if isinstance(told, dict) else {}


@dataclass(frozen=True, slots=True)
class TrainedRuns:
    """What figures are drawn of."""

    teacher: TrainedRun
    seed: int
    students: dict[str, TrainedRun]
    """The finished runs of this seed, by label."""
    whole: str | None
    """The label of the whole method, IFKD."""

    @property
    def ifkd(self) -> TrainedRun | None:
        """The student that IFKD taught."""
        return None if self.whole is None else self.students[self.whole]

    @property
    def plain(self) -> TrainedRun | None:
        """The student that nobody taught."""
        return self.students.get(PLAIN.label)

    @property
    def attention(self) -> TrainedRun | None:
        """The student that attention transfer taught."""
        return self.students.get("at")


def find_runs(
    folder: Path, *, seed: int | None = None, label: str | None = None, root: Path | None = None
) -> TrainedRuns:
    """Return the runs of a study's folder.

    Args:
        folder: A folder of `ifkd study`.
        seed: Whose students; by default the lowest seed by which IFKD was trained, else the lowest there is.
        label: The variant that stands for IFKD; by default the whole method.
        root: Where the data set lies by now; by default where each run's recipe says.

    Raises:
        UsageError: The folder holds no study, or it has no such seed or variant.
    """
    finished = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RESULT}"))}
    if TEACHER not in finished:
        raise UsageError(
            f"{folder} holds no study whose teacher is trained",
            expected="a folder of `ifkd study compare`, `ablate` or `sweep`",
        )
    by_seed: dict[int, dict[str, TrainedRun]] = {}
    for name, place in finished.items():
        if found := RUN_NAME.fullmatch(name):
            by_seed.setdefault(int(found["seed"]), {})[found["label"]] = TrainedRun(found["label"], place, root)
    labels = {one for students in by_seed.values() for one in students}
    if label is not None and label not in labels:
        raise UsageError(f"{folder} has no finished run of {label!r}", hint=_hint(label, labels))
    if seed is not None and seed not in by_seed:
        raise UsageError(f"{folder} has no finished run of seed {seed}", expected=_listed(map(str, sorted(by_seed))))
    if seed is None:
        having = [one for one in sorted(by_seed) if _whole(by_seed[one], label) is not None]
        seed = next(iter(having or sorted(by_seed)), 0)
    students = by_seed.get(seed, {})
    if label is not None and label not in students:
        raise UsageError(f"{folder} has no finished run {label}-{seed}", hint=_hint(label, students))
    return TrainedRuns(TrainedRun(TEACHER, finished[TEACHER], root), seed, students, _whole(students, label))


def _whole(students: dict[str, TrainedRun], label: str | None) -> str | None:
    """Return the label that stands for IFKD: the one asked for, a usual one, or the first that is IFKD at all."""
    if label is not None:
        return label if label in students else None
    usual = next((one for one in WHOLE if one in students), None)
    return usual or next((one for one, run in students.items() if run.method.get("name") == "ifkd"), None)


def _hint(wrong: str, known: Iterable[str]) -> str:
    return f"{did_you_mean(wrong, known)} There are {_listed(known)}".lstrip()


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none yet"

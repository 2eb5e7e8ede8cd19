"""study.json: the metrics of a study's runs, and statistics over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from ifkd import __version__
from ifkd.core.config import Schema, read_versioned
from ifkd.data.metrics import Metrics
from ifkd.study.paper_tables import PaperDataset
from ifkd.study.variants import PLAIN

RECORD = "study.json"
TEACHER = "teacher"
"""Label and folder name of the teacher's run."""


class EvaluatedRun(Schema):
    """Metrics of one finished run on the test split."""

    metrics: Metrics
    train_seconds: float
    checkpoint_sha256: str

    @property
    def mean_ap(self) -> float:
        """The mAP on the test split (0 to 1)."""
        assert self.metrics.mean_ap is not None
        return self.metrics.mean_ap

    @field_validator("metrics")
    @classmethod
    def _has_objects(cls, metrics: Metrics) -> Metrics:
        if not metrics.objects:
            raise ValueError("the test split has no labeled object, so runs cannot be compared")
        return metrics


class StudyRecord(Schema):
    """The content of study.json."""

    schema_version: Literal[2] = 2
    title: str
    producer: str = f"ifkd {__version__}"
    recipe: str
    """The recipe's name."""
    recipe_toml: str
    """The recipe of all runs, without the overrides of variants and seeds."""
    dataset: PaperDataset | None = None
    """The paper's data set, whose published metrics the tables show."""
    seeds: tuple[int, ...]
    teacher: EvaluatedRun
    students: dict[str, tuple[EvaluatedRun | None, ...]]
    """Variant -> its runs in the order of `seeds`; None for an unfinished run."""
    parameter: str | None = None
    """Swept parameter, in a sweep."""
    parameter_values: dict[str, float] = {}
    """Variant -> value of the swept parameter."""
    conditions: dict[str, str] = {}
    """Networks, data and schedule in words."""
    machines: dict[str, int] = {}
    """Machine -> number of finished runs that it trained."""

    @property
    def unfinished(self) -> list[str]:
        """The names of the unfinished runs."""
        return [
            run_name(label, seed)
            for label, runs in self.students.items()
            for seed, run in zip(self.seeds, runs, strict=True)
            if run is None
        ]

    def finished(self, label: str) -> list[EvaluatedRun]:
        """Return the finished runs of a variant; none for a label that the study does not have."""
        return [run for run in self.students.get(label, ()) if run is not None]


def read_study_record(path: Path) -> StudyRecord:
    """Read a study.json.

    Raises:
        DataError: The file cannot be read, is invalid, or has another schema version.
    """
    return read_versioned(path, StudyRecord, hint="Write it again: run the study's command with --report-only.")


def run_name(label: str, seed: int) -> str:
    """Return the name of a run and of its folder."""
    return f"{label}-{seed}"


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """Mean and standard deviation over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None for a single seed."""

    def __format__(self, sign: str) -> str:
        """Return "mean ± std" with one decimal; a `sign` of "+" is shown before a positive mean too."""
        return f"{self.mean:{sign}.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


def seed_spread(fractions: Iterable[float]) -> SeedSpread:
    """Return the spread, in percentage points, of metrics between 0 and 1."""
    points = [100 * value for value in fractions]
    return SeedSpread(statistics.fmean(points), statistics.stdev(points) if len(points) > 1 else None)


def map_spread(runs: Sequence[EvaluatedRun]) -> SeedSpread | None:
    """Return the spread of mAP over finished runs; None without any."""
    return seed_spread(run.mean_ap for run in runs) if runs else None


def map_gain(record: StudyRecord, label: str) -> SeedSpread | None:
    """Return a variant's gain in mAP over the plain student of the same seed; None without a pair of finished runs."""
    pairs = zip(record.students[label], record.students[PLAIN.label], strict=True)
    gains = [run.mean_ap - plain.mean_ap for run, plain in pairs if run and plain]
    return seed_spread(gains) if gains else None

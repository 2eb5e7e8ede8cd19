"""study.json: the metrics of a study's runs, and statistics over seeds."""

import math
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
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
    2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip
"""Quantiles at 0.975 of Student's t distribution for 1 to 19 degrees of freedom; the last one is used above."""


class EvaluatedRun(Schema):
    """Metrics of one finished run on the test split."""

    metrics: Metrics
    train_seconds: float
    checkpoint_sha256: str
    test_sha256: str = ""
    """Digest of what the metrics depend on beside the checkpoint: the labels, and the settings of the detection."""

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
    verdict: tuple[str, ...] = ()
    """What the differences prove, in sentences."""

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
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % confidence interval of the mean by Student's t distribution; infinite for a single seed."""
        if self.std is None:
            return -math.inf, math.inf
        half = T_QUANTILES[min(self.seeds - 1, len(T_QUANTILES)) - 1] * self.std / math.sqrt(self.seeds)
        return self.mean - half, self.mean + half

    def __format__(self, sign: str) -> str:
        """Return "mean ± std" with one decimal; a `sign` of "+" is shown before a positive mean too."""
        return f"{self.mean:{sign}.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


def seed_spread(fractions: Iterable[float]) -> SeedSpread:
    """Return the spread, in percentage points, of metrics between 0 and 1."""
    points = [100 * value for value in fractions]
    std = statistics.stdev(points) if len(points) > 1 else None
    return SeedSpread(statistics.fmean(points), std, len(points))


def map_spread(runs: Sequence[EvaluatedRun]) -> SeedSpread | None:
    """Return the spread of mAP over finished runs; None without any."""
    return seed_spread(run.mean_ap for run in runs) if runs else None


def map_difference(record: StudyRecord, label: str, other: str = PLAIN.label) -> SeedSpread | None:
    """Return the difference in mAP of two variants with the same seed; None without a pair of finished runs."""
    pairs = zip(record.students[label], record.students[other], strict=True)
    differences = [run.mean_ap - reference.mean_ap for run, reference in pairs if run and reference]
    return seed_spread(differences) if differences else None

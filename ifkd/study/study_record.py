"""study.json: what a study found, and the statistics of it."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from ifkd import __version__
from ifkd.core.config import Schema
from ifkd.core.errors import DataError
from ifkd.data.metrics import Metrics
from ifkd.study.paper_tables import DataSet
from ifkd.study.variant import PLAIN

RECORD = "study.json"
TEACHER = "teacher"
"""Label and folder of the teacher's run, of which a study has one."""


class Outcome(Schema):
    """What one trained detector reached on the test split."""

    metrics: Metrics
    seconds: float
    """Of its training."""
    checkpoint_sha256: str


class StudyRecord(Schema):
    """A study, as study.json holds it."""

    title: str
    producer: str = f"ifkd {__version__}"
    recipe: str
    """Its name."""
    recipe_toml: str
    """The recipe that all runs share."""
    data_set: DataSet | None = None
    """When it is one of the paper's."""
    seeds: tuple[int, ...]
    teacher: Outcome
    students: dict[str, tuple[Outcome | None, ...]]
    """By variant, one for each seed in order; None where a run is not finished."""
    parameter: str | None = None
    """Of a sweep: what was varied."""
    values: dict[str, float] = {}
    """Of a sweep: the parameter's value by variant."""
    conditions: dict[str, str] = {}
    """What was run, in words: networks, data, schedule."""
    machines: dict[str, int] = {}
    """Where: how many runs each machine trained, as the runs tell it."""

    @property
    def missing(self) -> list[str]:
        """The runs that are not finished, by name."""
        return [
            run_name(label, seed)
            for label, runs in self.students.items()
            for seed, run in zip(self.seeds, runs, strict=True)
            if run is None
        ]

    def finished(self, label: str) -> list[Outcome]:
        """Return what the finished runs of a variant reached."""
        return [run for run in self.students[label] if run is not None]


def read_record(path: Path) -> StudyRecord:
    """Read a study.json.

    Raises:
        DataError: The file cannot be read, or is no record of this version.
    """
    try:
        return StudyRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path} is no record of a study of this version, at {where}",
            expected=first["msg"],
            hint="Write it anew: the study's command with --report-only.",
        ) from error


class SeedSpread(Schema):
    """Mean and standard deviation over seeds; one seed has no deviation."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """Return both as points, with the sign of nothing."""
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


def run_name(label: str, seed: int) -> str:
    """Return the name of a run, which is its folder's."""
    return f"{label}-{seed}"


def seed_spread(values: Iterable[float]) -> SeedSpread:
    """Return the spread of shares in points of a hundred; the deviation is that of a sample."""
    points = [100 * value for value in values]
    return SeedSpread(mean=statistics.fmean(points), deviation=statistics.stdev(points) if len(points) > 1 else None)


def mean_ap(runs: Sequence[Outcome]) -> SeedSpread | None:
    """Return the spread of mAP over finished runs; None when there are none."""
    return seed_spread(run.metrics.mean_ap for run in runs) if runs else None


def gains(record: StudyRecord, label: str) -> SeedSpread | None:
    """Return a variant's gain in mAP over the plain student, paired by seed, in points; None without a pair."""
    pairs = zip(record.students[label], record.students[PLAIN.label], strict=True)
    differences = [own.metrics.mean_ap - plain.metrics.mean_ap for own, plain in pairs if own and plain]
    return seed_spread(differences) if differences else None

"""Tune each method's weight on the validation part, every method with the same number of trials."""

import logging
import operator
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ifkd import __version__
from ifkd.core.config import Schema, dump, read_versioned
from ifkd.core.errors import DataError, TrainingError, UsageError
from ifkd.core.files import write_json
from ifkd.data.splits import read_split
from ifkd.distillation.methods.fkd import TEMPERATURES
from ifkd.recipe import Recipe
from ifkd.study.study import Study
from ifkd.study.study_record import run_name
from ifkd.study.variants import Variant, comparison_variants
from ifkd.training.run_folder import RunFolder

TUNING = "tuning.json"
FACTORS = (1.0, 3.0, 0.3, 10.0, 0.1, 30.0, 0.03, 100.0, 0.01)
"""Factors of a method's weights; the first is the recipe's, or the published weight."""
WEIGHT = "distillation.balance.multiple"
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "at": ("distillation.method.level_weights", ("equal",)),
    "fkd": ("distillation.method.temperature", ("0.1", "0.5")),
    "fgd": ("distillation.method.temperature", ("0.25", "1.0")),
    "arsd": ("distillation.method.binary_mask", ("true",)),
    "insdist": ("distillation.method.threshold", ("0.3", "0.7")),
    "pkd": ("distillation.method.levels", ("all",)),
    "cwd": ("distillation.method.temperature", ("2.0", "4.0")),
    "crosskd": ("distillation.method.own_layers", ("2", "1")),
    "ifkd": ("distillation.method.fdr.filter", ("grid", "none")),
}
"""Method -> the option that is tuned beside its weight, and values to try; that of the first trial is left out."""
MAX_TRIALS = len(FACTORS)
"""Trials that every method's grid allows."""

logger = logging.getLogger(__name__)
Point = tuple[int, int]
"""Position in a method's grid: the rank of the factor by size, and the number of the option's value."""
_RANKED = tuple(sorted(FACTORS))
_START: Point = (_RANKED.index(1.0), 0)


class Trial(Schema):
    """One setting of a method that was tried."""

    label: str
    """Prefix of the names of its run folders; that of the first trial is the method's name."""
    overrides: tuple[str, ...]
    """KEY=VALUE overrides of the recipe."""
    validation_map: float | None
    """Best validation mAP (0 to 1), mean over seeds; None if the training failed."""


class MethodTuning(Schema):
    """The trials of one method."""

    grid: dict[str, tuple[str, ...]]
    """Key -> the values that the search could choose; the first stands for the recipe's or the published one."""
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial of the highest validation mAP, the earliest of equal ones."""
        return max(self.trials, key=lambda trial: -1.0 if trial.validation_map is None else trial.validation_map)


class TuningRecord(Schema):
    """The content of tuning.json."""

    schema_version: Literal[1] = 1
    producer: str = f"ifkd {__version__}"
    recipe: str
    """The recipe's name."""
    recipe_toml: str
    """The recipe of all trials, without their overrides."""
    seeds: tuple[int, ...]
    validation: str
    """The images on which the trials were compared."""
    methods: dict[str, MethodTuning]


def tune(study: Study, methods: Sequence[str], *, trials: int) -> TuningRecord:
    """Train `trials` settings of each method, best first, and write tuning.json into the study's folder.

    The first trial is the recipe's or the published setting. Each further one is a neighbor, in the method's grid, of
    the best setting so far that has an untried one. The search depends on the results alone, so that it resumes, and
    finished runs are not repeated. Trials of other methods that the file has are kept. The test split is not read.

    Raises:
        ConfigError: A method does not fit the recipe. Nothing is trained.
        DataError: The validation part has no labeled object, or an existing tuning.json is invalid. Nothing is trained.
        OutputError: The folder contains a study or a run of another recipe.
        TrainingError: The teacher's training failed, the first trials of all methods diverged, or a run failed for
            another reason than a loss that is not finite.
        UsageError: A method is unknown, or there are more trials than its grid has settings.
    """
    starts = comparison_variants(methods)[1:]
    if trials > MAX_TRIALS:
        raise UsageError(
            "There are too many trials for the smallest grid", got=trials, expected=f"at most {MAX_TRIALS}"
        )
    validation = read_split(study.recipe.data, "validation")
    if not sum(validation.objects_per_class().values()):
        raise DataError(f"{validation.path} has no labeled object for validation, so nothing can be tuned on it")
    earlier = read_tuning_record(path) if (path := study.folder / TUNING).is_file() else None
    found: dict[str, dict[Point, Trial]] = {start.label: {} for start in starts}
    with study.prepared(starts):
        values = {start.label: other_values(start.label, study.recipe_of(start)) for start in starts}
        for number in range(trials):
            plan = {method: next_point(found[method], columns=1 + len(values[method])) for method in found}
            variants = {
                start.label: _variant(start, plan[start.label], values[start.label], _multiple(study, start.label))
                for start in starts
            }
            _train(study, list(variants.values()), first=number == 0)
            for method, variant in variants.items():
                score = _score(study, variant.label)
                found[method][plan[method]] = Trial(
                    label=variant.label, overrides=variant.overrides, validation_map=score
                )
                shown = "failed" if score is None else f"validation mAP {100 * score:.1f}"
                logger.info("Trial %d of %d, %s: %s", number + 1, trials, variant.label, shown)
            record = _record(study, found, values, f"{len(validation)} images of {validation.path.name}")
            record = _with_earlier(record, earlier)
            write_json(path, record.model_dump(mode="json"))
    return record


def other_values(method: str, start: Recipe) -> tuple[str, ...]:
    """Return the values of the method's option that its first trial, of the recipe `start`, does not have."""
    if method not in OPTIONS:
        return ()
    key, values = OPTIONS[method]
    own = operator.attrgetter(key.removeprefix("distillation."))(start.distillation)
    if own is None:  # FKD's temperature depends on the detector
        own = TEMPERATURES[start.student.detector.family]
    return tuple(value for value in values if value != str(own).lower())


def next_point(found: Mapping[Point, Trial], *, columns: int) -> Point:
    """Return the untried neighbor of the best tried setting that has one; heavier weights are tried first.

    `columns` is the number of values of the option beside the weight, the first trial's included.
    """
    if not found:
        return _START
    ranked = sorted(found, key=lambda point: -(found[point].validation_map or 0.0))
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1))
    neighbors = [(point[0] + step[0], point[1] + step[1]) for point in ranked for step in steps]
    inside = [one for one in neighbors if 0 <= one[0] < len(_RANKED) and 0 <= one[1] < columns]
    return next(one for one in inside if one not in found)


def tuned_variants(record: TuningRecord, methods: Sequence[str], source: Path) -> tuple[Variant, ...]:
    """Return the best setting of each method, except those that are the first setting, which a comparison has anyway.

    Raises:
        UsageError: A method was not tuned, or methods had different numbers of trials.
    """
    hint = f"Tune all methods with the same number of trials: ifkd study tune RECIPE --methods {' '.join(methods)}"
    if absent := [method for method in methods if method not in record.methods]:
        raise UsageError(f"{source} has no trials of {', '.join(absent)}", hint=hint)
    counts = {method: len(record.methods[method].trials) for method in methods}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise UsageError(f"{source} has unequal numbers of trials", got=shown, hint=hint)
    best = {method: record.methods[method].best for method in methods}
    return tuple(Variant(one.label, one.overrides) for method, one in best.items() if one.label != method)


def read_tuning_record(path: Path) -> TuningRecord:
    """Read a tuning.json.

    Raises:
        DataError: The file cannot be read, is invalid, or has another schema version.
    """
    return read_versioned(path, TuningRecord, hint="Write it again: run `ifkd study tune`.")


def _multiple(study: Study, method: str) -> float:
    """Return the factor of a method's weights in its first trial; published weights are not multiplied."""
    return study.recipe.distillation.balance.multiple if method == "ifkd" else 1.0


def _variant(start: Variant, point: Point, values: Sequence[str], multiple: float) -> Variant:
    """Return the variant of a setting; that of the first setting is the comparison's."""
    factor, column = _RANKED[point[0]], point[1]
    label, overrides = start.label, start.overrides
    if factor != 1.0:
        label += f"+weight={factor:g}"
        overrides += (f"{WEIGHT}={factor * multiple:g}",)
    if column:
        key = OPTIONS[start.label][0]
        label += f"+{key.rpartition('.')[2]}={values[column - 1]}"
        overrides += (f"{key}={values[column - 1]}",)
    return Variant(label, overrides)


def _train(study: Study, variants: Sequence[Variant], *, first: bool) -> None:
    """Train the runs of a round; a loss that is not finite is the outcome of a trial, unless all `first` ones have it.

    Raises:
        TrainingError: A run failed for another reason, or the first trials of all methods diverged.
    """
    try:
        study.train(variants)
    except TrainingError as error:
        runs = {
            one.label: [RunFolder(study.folder / run_name(one.label, seed)) for seed in study.seed_range]
            for one in variants
        }
        all_diverged = all(any(run.has_diverged for run in of_label) for of_label in runs.values())
        failed = [run for of_label in runs.values() for run in of_label if not run.is_finished]
        if not all(run.has_diverged for run in failed) or (first and all_diverged):
            raise
        logger.warning("%s", error)


def _score(study: Study, label: str) -> float | None:
    """Return the mean over seeds of the best validation mAP; None if a run of the setting failed."""
    runs = [RunFolder(folder) for folder in study.finished_folders(label)]
    if len(runs) < study.seeds:
        return None
    return statistics.fmean(run.read_result().best_validation_map or 0.0 for run in runs)


def _record(
    study: Study, found: Mapping[str, Mapping[Point, Trial]], values: Mapping[str, Sequence[str]], validation: str
) -> TuningRecord:
    grids: dict[str, dict[str, tuple[str, ...]]] = {}
    for method in found:
        multiple = _multiple(study, method)
        grids[method] = {WEIGHT: tuple(f"{factor * multiple:g}" for factor in FACTORS)}
        if method in OPTIONS:
            grids[method][OPTIONS[method][0]] = ("default", *values[method])
    return TuningRecord(
        recipe=study.recipe.name,
        recipe_toml=dump(study.recipe),
        seeds=tuple(study.seed_range),
        validation=validation,
        methods={
            method: MethodTuning(grid=grids[method], trials=tuple(trials.values())) for method, trials in found.items()
        },
    )


def _with_earlier(record: TuningRecord, earlier: TuningRecord | None) -> TuningRecord:
    """Return the record with the trials of an earlier one of the same search that it has not repeated yet."""
    kept = {"recipe_toml", "seeds", "validation"}
    if earlier is None or earlier.model_dump(include=kept) != record.model_dump(include=kept):
        return record
    methods = dict(earlier.methods)
    for method, tuning in record.methods.items():
        known = methods.get(method)
        if known is None or known.trials[: len(tuning.trials)] != tuning.trials:
            methods[method] = tuning
    return record.model_copy(update={"methods": methods})

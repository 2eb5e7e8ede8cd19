"""Draw all figures of a study, and record in figures.json which figures are skipped and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ifkd import __version__, recipe
from ifkd.core.config import Schema
from ifkd.core.errors import UsageError
from ifkd.core.files import sha256_of, write_json
from ifkd.data.coco import CocoDataset
from ifkd.data.splits import Split, read_split
from ifkd.study.figures import detections, embeddings, fdr_filters, feature_maps, results
from ifkd.study.figures.example_intermediates import example_intermediates
from ifkd.study.figures.examples import Example, select_examples
from ifkd.study.figures.plotting import require_matplotlib
from ifkd.study.figures.trained_runs import FinishedRun, TrainedRuns, find_runs
from ifkd.study.study_record import RECORD, read_study_record

INDEX = "figures.json"


class FiguresRecord(Schema):
    """The content of figures.json."""

    schema_version: Literal[2] = 2
    producer: str = f"ifkd {__version__}"
    seed: int
    """Seed of the students."""
    level: recipe.Level
    images: tuple[str, ...]
    """Names of the example images."""
    checkpoints: dict[str, str]
    """Label of a run -> SHA-256 of its checkpoint."""
    figures: dict[str, tuple[str, ...]]
    """Figure -> its files."""
    skipped: dict[str, str]
    """Figure, or part of a figure -> reason why it is not drawn."""


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """Runs, images and levels to draw."""

    seed: int | None
    label: str | None
    """Label of the variant that represents IFKD."""
    data_root: Path | None
    """Present folder of the data set; by default the recipe's."""
    split: Split
    images: tuple[str, ...]
    """Ids or file names of example images."""
    count: int
    """Number of example images to choose when none are named."""
    level: recipe.Level | None
    """Pyramid level of the maps; by default the finest."""
    score_threshold: float


def write_figures(study_folder: Path, folder: Path, options: FigureOptions) -> FiguresRecord:
    """Write all figures that a study's finished runs allow, and figures.json, into `folder`.

    Raises:
        UsageError: `study_folder` contains no study, or the run, image or level does not exist.
        MissingExtraError: Matplotlib is not installed.
        CheckpointError: A checkpoint is missing or damaged.
        DataError: study.json is invalid or has another schema version, or an image cannot be read.
        OutputError: The folder is not writable.
    """
    require_matplotlib()
    runs = find_runs(study_folder, seed=options.seed, label=options.label, data_root=options.data_root)
    settings = runs.teacher.recipe
    level = _pyramid_level(runs, options.level)
    dataset = read_split(settings.data, options.split)
    examples = select_examples(dataset, settings.data, names=options.images, count=options.count)
    if not examples:
        raise UsageError(f"{dataset.path} has no image with an object, which figures need")
    drawn = _Drawn(folder, {}, {})
    _draw_results(drawn, study_folder)
    _draw_detections(drawn, runs, examples, dataset.classes, options.score_threshold)
    _draw_embeddings(drawn, runs, dataset, level)
    _draw_intermediates(drawn, runs, examples, level)
    used = [run for run in (runs.teacher, runs.plain, runs.at, runs.ifkd) if run is not None]
    record = FiguresRecord(
        seed=runs.seed,
        level=level,
        images=tuple(example.name for example in examples),
        checkpoints={run.label: sha256_of(run.folder.best) for run in used},
        figures={name: tuple(path.name for path in paths) for name, paths in drawn.files.items()},
        skipped=drawn.skipped,
    )
    write_json(folder / INDEX, record.model_dump(mode="json"))
    return record


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The files of each figure in a folder, and the reason for each skipped figure."""

    folder: Path
    files: dict[str, list[Path]]
    skipped: dict[str, str]


def _draw_results(drawn: _Drawn, study_folder: Path) -> None:
    """Draw the results in study.json: Figure 5 for a sweep, a comparison of variants for other studies."""
    path = study_folder / RECORD
    record = read_study_record(path) if path.is_file() else None
    if record is None or not any(record.finished(label) for label in record.students):
        drawn.skipped[results.COMPARISON] = "the folder has no results; write them with `ifkd study … --report-only`"
    elif not record.parameter_values:
        drawn.files[results.COMPARISON] = results.draw_comparison(record, drawn.folder)
    if record is None or not any(record.finished(label) for label in record.parameter_values):
        drawn.skipped[results.SENSITIVITY] = "the folder has no results of `ifkd study sweep`"
    else:
        name = f"{results.SENSITIVITY}-{record.parameter}"
        drawn.files[name] = results.draw_sensitivity(record, drawn.folder)


def _draw_detections(
    drawn: _Drawn, runs: TrainedRuns, examples: Sequence[Example], classes: Sequence[str], min_score: float
) -> None:
    found, settings = {}, runs.teacher.recipe
    for name, run in {"teacher": runs.teacher, "student": runs.plain, "AT": runs.at, "IFKD": runs.ifkd}.items():
        if run is None:
            drawn.skipped[f"{detections.NAME}: {name}"] = f"the study has no finished run with seed {runs.seed}"
        else:
            found[name] = detections.detect_examples(run, examples, settings, score_threshold=min_score)
    drawn.files[detections.NAME] = detections.draw_detections(found, examples, classes, drawn.folder)


def _draw_embeddings(drawn: _Drawn, runs: TrainedRuns, dataset: CocoDataset, level: recipe.Level) -> None:
    """Draw Figure 4 where HSM maps features into the ball."""
    hsm = _hsm_options(runs.ifkd or runs.teacher)
    if hsm.map == "raw":
        drawn.skipped[embeddings.NAME] = "HSM uses raw features in this run, which are not in the Poincaré ball"
        return
    images, data = embeddings.select_images(dataset), runs.teacher.recipe.data
    networks = {
        name: embeddings.object_features(run.detector, images, data, level)
        for name, run in {"teacher": runs.teacher, "student": runs.plain, "IFKD": runs.ifkd}.items()
        if run is not None
    }
    if len(networks["teacher"].labels) < 2:
        drawn.skipped[embeddings.NAME] = "the split has fewer than two objects"
        return
    drawn.files[embeddings.NAME] = embeddings.draw_embeddings(networks, dataset.classes, hsm, drawn.folder)


def _draw_intermediates(drawn: _Drawn, runs: TrainedRuns, examples: Sequence[Example], level: recipe.Level) -> None:
    """Draw the figures that need IFKD's own layers: EDE, FDR and its filters, the masks."""
    if runs.ifkd is None or not runs.ifkd.is_ifkd:
        reason = f"the study has no finished run of IFKD with seed {runs.seed}"
        if runs.ifkd is not None:
            reason = f"the method of {runs.ifkd.label} is not IFKD"
        names = (feature_maps.DISTURBANCE, feature_maps.FREQUENCIES, feature_maps.MASKS, fdr_filters.NAME)
        drawn.skipped.update(dict.fromkeys(names, reason))
        return
    maps = example_intermediates(runs.teacher, runs.ifkd, examples)
    figures = feature_maps.map_panels(maps, level)
    if feature_maps.DISTURBANCE not in figures:
        drawn.skipped[feature_maps.DISTURBANCE] = maps.no_ede or f"EDE is off at {level} in the run"
    for name, panels in figures.items():
        drawn.files[name] = feature_maps.draw_maps(examples, panels, drawn.folder, name, level)
    if not maps.method.filters:
        drawn.skipped[fdr_filters.NAME] = "FDR, or its filter, is off in the run"
    else:
        responses = fdr_filters.frequency_responses(maps.method, runs.ifkd.recipe.data.tile_px)
        drawn.files[fdr_filters.NAME] = fdr_filters.draw_filters(responses, drawn.folder)


def _hsm_options(run: FinishedRun) -> recipe.HsmOptions:
    """Return the HSM options of an IFKD run, or else of the run's recipe."""
    if run.is_ifkd:
        return recipe.IfkdOptions.model_validate(run.method).hsm
    method = run.recipe.distillation.method
    return method.hsm if isinstance(method, recipe.IfkdOptions) else recipe.HsmOptions()


def _pyramid_level(runs: TrainedRuns, level: recipe.Level | None) -> recipe.Level:
    levels = runs.teacher.checkpoint.meta.detector.levels
    if level is not None and level not in levels:
        raise UsageError(f"The study's detectors have no pyramid level {level}", expected=", ".join(levels))
    return level or levels[0]

"""All figures of a study's folder, and what of them could not be drawn and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ifkd import __version__, recipe
from ifkd.core.config import Schema
from ifkd.core.errors import UsageError
from ifkd.core.files import sha256_of, write_json
from ifkd.data.coco import CocoDataset
from ifkd.data.splits import Split, read_split
from ifkd.study.figures import detections, embeddings, fdr_filters, feature_maps
from ifkd.study.figures.comparison import NAME as COMPARISON
from ifkd.study.figures.comparison import draw_comparison
from ifkd.study.figures.drawing import need_matplotlib
from ifkd.study.figures.example_intermediates import example_intermediates
from ifkd.study.figures.examples import Example, examples
from ifkd.study.figures.sensitivity import NAME as SENSITIVITY
from ifkd.study.figures.sensitivity import draw_sensitivity
from ifkd.study.figures.trained_runs import TrainedRun, TrainedRuns, find_runs
from ifkd.study.study_record import RECORD, read_record
from ifkd.training.run_folder import BEST

INDEX = "figures.json"


class FiguresRecord(Schema):
    """figures.json: which figures there are, of what, and which there are not."""

    producer: str = f"ifkd {__version__}"
    seed: int
    level: recipe.Level
    images: tuple[str, ...]
    checkpoints: dict[str, str]
    """SHA-256 of each checkpoint that was looked at, by its run's label."""
    figures: dict[str, tuple[str, ...]]
    """Their files."""
    left_out: dict[str, str]
    """Figure, or part of one, and the reason."""


@dataclass(frozen=True, slots=True)
class FigureRequest:
    """Which figures are wanted, and of what."""

    seed: int | None = None
    label: str | None = None
    """The variant that stands for IFKD."""
    root: Path | None = None
    """Where the data set lies by now; by default where the recipe says."""
    split: Split = "test"
    images: tuple[str, ...] = ()
    count: int = 3
    """Images to choose where none are named."""
    level: recipe.Level | None = None
    """The pyramid's level whose maps are shown; by default its finest."""
    least_score: float = detections.LEAST_SCORE


def write_figures(study: Path, folder: Path, request: FigureRequest) -> FiguresRecord:
    """Write every figure that a study's folder gives into `folder`, with figures.json.

    Raises:
        UsageError: `study` is no study, or has not the run, image or level asked for.
        MissingExtraError: Matplotlib is not installed.
        CheckpointError: A checkpoint is damaged.
        DataError: study.json is damaged or of another version, or the recipe's images cannot be read.
        OutputError: The folder cannot be written.
    """
    need_matplotlib()
    runs = find_runs(study, seed=request.seed, label=request.label, root=request.root)
    settings = runs.teacher.recipe
    level = _level(runs, request.level)
    dataset = read_split(settings.data, request.split)
    shown = examples(dataset, settings.data, names=request.images, count=request.count)
    if not shown:
        raise UsageError(f"{dataset.path} has no image with an object in it, and figures show objects")
    easel = _Easel(folder)
    _draw_results(easel, study)
    _draw_detections(easel, runs, shown, dataset.classes, request.least_score)
    _draw_embeddings(easel, runs, dataset, level)
    _draw_insight(easel, runs, shown, level)
    looked_at = [run for run in (runs.teacher, runs.plain, runs.attention, runs.ifkd) if run is not None]
    record = FiguresRecord(
        seed=runs.seed,
        level=level,
        images=tuple(example.name for example in shown),
        checkpoints={run.label: sha256_of(run.folder / BEST) for run in looked_at},
        figures=easel.drawn,
        left_out=easel.left_out,
    )
    write_json(folder / INDEX, record.model_dump(mode="json"))
    return record


class _Easel:
    """Where figures are drawn, and what came of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn: dict[str, tuple[str, ...]] = {}
        self.left_out: dict[str, str] = {}

    def draw(self, name: str, figure: Callable[[], list[Path]]) -> None:
        self.drawn[name] = tuple(path.name for path in figure())


def _draw_results(easel: _Easel, study: Path) -> None:
    """Draw what a reported study found: Figure 5 of a sweep, the variants beside each other of others."""
    path = study / RECORD
    record = read_record(path) if path.is_file() else None
    if record is None or not any(record.finished(label) for label in record.students):
        easel.left_out[COMPARISON] = "the folder holds no results; `ifkd study compare … --report-only` writes them"
    elif not record.values:
        easel.draw(COMPARISON, lambda: draw_comparison(record, easel.folder))
    if record is None or not any(record.finished(label) for label in record.values):
        easel.left_out[SENSITIVITY] = "the folder holds no sweep with results; `ifkd study sweep` makes one"
    else:
        easel.draw(f"{SENSITIVITY}-{record.parameter}", lambda: draw_sensitivity(record, easel.folder))


def _draw_detections(
    easel: _Easel, runs: TrainedRuns, shown: Sequence[Example], classes: Sequence[str], least_score: float
) -> None:
    found = {}
    wanted = {"teacher": runs.teacher, "student": runs.plain, "AT": runs.attention, "IFKD": runs.ifkd}
    for name, run in wanted.items():
        if run is None:
            easel.left_out[f"{detections.NAME}: {name}"] = f"the study has no finished run of it with seed {runs.seed}"
        else:
            settings = runs.teacher.recipe
            found[name] = detections.found_by(run, shown, settings, least_score=least_score)
    easel.draw(detections.NAME, lambda: detections.draw_detections(found, shown, classes, easel.folder))


def _draw_embeddings(easel: _Easel, runs: TrainedRuns, dataset: CocoDataset, level: recipe.Level) -> None:
    """Draw Figure 4, where HSM sees features in the ball."""
    similarity = _similarity(runs.ifkd or runs.teacher)
    if similarity.map == "raw":
        easel.left_out[embeddings.NAME] = "HSM takes raw features here, which lie outside the ball"
        return
    networks = {"teacher": runs.teacher, "student": runs.plain, "IFKD": runs.ifkd}
    some, data = embeddings.chosen(dataset), runs.teacher.recipe.data
    seen = {
        name: embeddings.objects_of(run.detector, some, data, level)
        for name, run in networks.items()
        if run is not None
    }
    if len(seen["teacher"].labels) < 2:
        easel.left_out[embeddings.NAME] = "the split has fewer than two objects"
        return
    easel.draw(embeddings.NAME, lambda: embeddings.draw_embeddings(seen, dataset.classes, similarity, easel.folder))


def _draw_insight(easel: _Easel, runs: TrainedRuns, shown: Sequence[Example], level: recipe.Level) -> None:
    """Draw what needs the method itself: EDE, FDR and its filters, the masks."""
    inner = (feature_maps.HEATS, feature_maps.BANDS, feature_maps.MASKS, fdr_filters.NAME)
    if runs.ifkd is None:
        reason = f"the study has no finished run of IFKD with seed {runs.seed}"
        easel.left_out |= dict.fromkeys(inner, reason)
        return
    if runs.ifkd.method.get("name") != "ifkd":
        reason = f"{runs.ifkd.label} is no run of IFKD"
        easel.left_out |= dict.fromkeys(inner, reason)
        return
    insight = example_intermediates(runs.teacher, runs.ifkd, shown)
    folder = easel.folder
    if insight.undisturbed is not None or insight.at(level)[0].disturbance is None:
        easel.left_out[feature_maps.HEATS] = insight.undisturbed or f"the run has EDE off at {level}"
    else:
        easel.draw(feature_maps.HEATS, lambda: feature_maps.draw_disturbance(insight, shown, level, folder))
    easel.draw(feature_maps.BANDS, lambda: feature_maps.draw_bands(insight, shown, level, folder))
    easel.draw(feature_maps.MASKS, lambda: feature_maps.draw_masks(insight, shown, level, folder))
    if insight.unlearned is not None:
        easel.left_out[fdr_filters.NAME] = insight.unlearned
        easel.left_out[f"{feature_maps.MASKS}: M_HSM"] = insight.unlearned
    elif not insight.method.filters:
        easel.left_out[fdr_filters.NAME] = "the run has FDR, or its filter, switched off"
    else:
        found = fdr_filters.spectra(insight.method, runs.ifkd.recipe.data.tile_px)
        easel.draw(fdr_filters.NAME, lambda: fdr_filters.draw_filters(found, folder))


def _similarity(run: TrainedRun) -> recipe.HsmOptions:
    """Return HSM's settings of an IFKD run, or else of the recipe."""
    if run.method.get("name") == "ifkd":
        return recipe.IfkdOptions.model_validate(run.method).hsm
    method = run.recipe.distillation.method
    return method.hsm if isinstance(method, recipe.IfkdOptions) else recipe.HsmOptions()


def _level(runs: TrainedRuns, wanted: recipe.Level | None) -> recipe.Level:
    levels = runs.teacher.checkpoint.meta.detector.levels
    if wanted is not None and wanted not in levels:
        raise UsageError(f"The study's pyramids have no level {wanted}", expected=", ".join(levels))
    return wanted or levels[0]

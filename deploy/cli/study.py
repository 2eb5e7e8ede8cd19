"""`ifkd study`: train, tune and compare many students with one recipe, and draw the paper's tables and figures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy import cli
from ifkd.core.errors import UsageError

if TYPE_CHECKING:
    from ifkd.data.splits import Split
    from ifkd.recipe import Level
    from ifkd.study.paper_tables import PaperDataset
    from ifkd.study.study import Study
    from ifkd.study.tuning import TuningRecord
    from ifkd.study.variants import Variant

COMMANDS = {
    "compare": "compare distillation methods, as in the paper's Table 3",
    "tune": "choose each method's weight on the validation part, every method with the same number of trials",
    "ablate": "switch the three parts of IFKD on and off, as in the paper's Table 4",
    "sweep": "train IFKD with several values of alpha or beta, as in the paper's Figure 5",
    "figures": "draw the paper's Figures 3 to 6 and diagnostic figures of a study's folder",
}
TITLES = {
    "compare": "Comparison of methods",
    "tune": "Tuning of methods",
    "ablate": "Ablation of IFKD",
    "sweep": "Sensitivity of IFKD",
}
FOLDERS = {"tune": "compare"}
"""Folders of studies that differ from the command: tuning and comparison share the teacher and the first trials."""


class Arguments(cli.Arguments):
    """The subcommand of `ifkd study`; the classes below declare its arguments."""

    study_command: Literal["compare", "tune", "ablate", "sweep", "figures"]


class TrainingArguments(Arguments):
    """Arguments that all subcommands which train share."""

    recipe: Path
    set: list[str]
    seeds: int
    jobs: int
    processes: int
    out: Path | None


class TuneArguments(TrainingArguments):
    """Arguments of `ifkd study tune`."""

    methods: list[str] | None
    trials: int


class StudyArguments(TrainingArguments):
    """Arguments that the subcommands compare, ablate and sweep share."""

    paper: "PaperDataset | None"
    report_only: bool


class CompareArguments(StudyArguments):
    """Arguments of `ifkd study compare`."""

    methods: list[str] | None
    tuned: Path | None
    variant: list[list[str]]


class AblateArguments(StudyArguments):
    """Arguments of `ifkd study ablate`."""

    without_at: bool


class SweepArguments(StudyArguments):
    """Arguments of `ifkd study sweep`."""

    parameter: Literal["alpha", "beta"]
    values: list[float]


class FiguresArguments(Arguments):
    """Arguments of `ifkd study figures`."""

    folder: Path
    images: list[str]
    count: int
    data_root: Path | None
    split: "Split"
    seed: int | None
    variant: str | None
    level: "Level | None"
    score_threshold: float
    out: Path | None


COMMAND_ARGUMENTS: dict[str, type[TrainingArguments | FiguresArguments]] = {
    "compare": CompareArguments,
    "tune": TuneArguments,
    "ablate": AblateArguments,
    "sweep": SweepArguments,
    "figures": FiguresArguments,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their arguments."""
    subparsers = parser.add_subparsers(dest="study_command", required=True, metavar="COMMAND")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, purpose in COMMANDS.items():
        description = f"{purpose[0].upper()}{purpose[1:]}."
        parsers[name] = subparsers.add_parser(name, help=purpose, description=description, allow_abbrev=False)
        cli.add_common_arguments(parsers[name], subcommand=True)
    for name in ("compare", "tune"):
        methods_help = f"methods to {name} (default: all that fit)"
        parsers[name].add_argument("--methods", nargs="+", metavar="NAME", help=methods_help)
    add = parsers["compare"].add_argument
    add(
        "--tuned",
        type=Path,
        metavar="FILE",
        help="tuning.json of `ifkd study tune`: adds the best setting of each method",
    )
    variant_help = "adds a variant of the recipe; can be repeated"
    add("--variant", nargs="+", action="append", default=[], metavar=("LABEL", "KEY=VALUE"), help=variant_help)
    trials_help = "settings of each method to train, the first one included (default: 5)"
    parsers["tune"].add_argument("--trials", type=cli.positive_int, default=5, metavar="N", help=trials_help)
    parsers["ablate"].add_argument("--without-at", action="store_true", help="train without attention transfer")
    add = parsers["sweep"].add_argument
    add("--parameter", default="alpha", choices=("alpha", "beta"), help="weight to vary (default: alpha)")
    add("--values", nargs="+", type=float, metavar="V", default=[], help="values to train (default: the paper's)")
    for name in TITLES:
        _add_training_arguments(parsers[name], seeds=1 if name == "tune" else 3, folder=FOLDERS.get(name, name))
        if name != "tune":
            _add_study_arguments(parsers[name])
    _add_figures_arguments(parsers["figures"])


def _add_training_arguments(parser: argparse.ArgumentParser, *, seeds: int, folder: str) -> None:
    add = parser.add_argument
    add("recipe", type=Path, help="the recipe, a TOML file; its method is IFKD")
    add("--set", nargs="+", metavar="KEY=VALUE", default=[], help="values that replace those of the recipe")
    seeds_help = f"seeds of each variant (default: {seeds})"
    add("--seeds", type=cli.positive_int, default=seeds, metavar="N", help=seeds_help)
    add("--jobs", type=cli.positive_int, default=1, metavar="N", help="number of concurrent runs (default: 1)")
    add("--processes", type=cli.positive_int, default=1, metavar="N", help="torchrun processes per run (default: 1)")
    add("--out", type=Path, metavar="DIR", help=f"the study's folder (default: runs/NAME/{folder})")


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--paper", choices=("sar_aircraft", "shiprsimagenet"), help="show the paper's metrics on this data set")
    add("--report-only", action="store_true", help="report the finished runs, and train nothing")


def _add_figures_arguments(parser: argparse.ArgumentParser) -> None:
    add, splits, levels = parser.add_argument, ("train", "validation", "test"), ("p2", "p3", "p4", "p5", "p6", "p7")
    add("folder", type=Path, help="the study's folder")
    add("--images", nargs="+", metavar="ID", default=[], help="ids or file names of example images")
    count_help = "example images to choose without --images (default: 3)"
    add("--count", type=cli.positive_int, default=3, metavar="N", help=count_help)
    add("--data-root", type=Path, metavar="DIR", help="folder of the data set (default: the recipe's)")
    add("--split", default="test", choices=splits, help="split of the images (default: test)")
    add("--seed", type=int, metavar="S", help="seed of the students (default: the lowest with IFKD)")
    add("--variant", metavar="LABEL", help="variant that represents IFKD (default: the complete method)")
    add("--level", choices=levels, help="pyramid level of the maps (default: the finest)")
    add("--score-threshold", type=float, default=0.3, metavar="S", help="minimum score of a detection (default: 0.3)")
    add("--out", type=Path, metavar="DIR", help="output folder (default: FOLDER/figures)")


def run(arguments: Arguments) -> dict[str, Any]:
    """Run the subcommand, and return its result."""
    typed = COMMAND_ARGUMENTS[arguments.study_command](**vars(arguments))
    if isinstance(typed, FiguresArguments):
        return _run_figures(typed)
    if isinstance(typed, TuneArguments):
        return _run_tuning(typed)
    assert isinstance(typed, StudyArguments)
    return _run_study(typed)


def _run_figures(arguments: FiguresArguments) -> dict[str, Any]:
    from ifkd.study.figures.write_figures import FigureOptions, write_figures

    if not 0 <= arguments.score_threshold <= 1:
        raise UsageError("--score-threshold must be between 0 and 1", got=arguments.score_threshold)
    folder = arguments.out or arguments.folder / "figures"
    options = FigureOptions(
        seed=arguments.seed,
        label=arguments.variant,
        data_root=arguments.data_root,
        split=arguments.split,
        images=tuple(arguments.images),
        count=arguments.count,
        level=arguments.level,
        score_threshold=arguments.score_threshold,
    )
    record = write_figures(arguments.folder, folder, options)
    if not arguments.json:
        lines = [f"{name}: {', '.join(files)}" for name, files in record.figures.items()]
        lines += [f"skipped {name}: {reason}" for name, reason in record.skipped.items()]
        print(*lines, folder, sep="\n")  # noqa: T201
    return record.model_dump(mode="json")


def _run_tuning(arguments: TuneArguments) -> dict[str, Any]:
    """Train the unfinished trials, and write tuning.json."""
    from ifkd.study.tuning import TUNING, tune
    from ifkd.study.variants import supported_methods

    study = _plan(arguments, ())
    methods = arguments.methods or supported_methods(arguments.recipe, arguments.set)
    record = tune(study, methods, trials=arguments.trials)
    if not arguments.json:
        print(_tuning_table(record), study.folder / TUNING, sep="\n")  # noqa: T201
    return record.model_dump(mode="json")


def _tuning_table(record: "TuningRecord") -> str:
    """Return the first and the best setting of each method with their validation mAP."""
    from ifkd.core.html.table import Table

    rows = [
        (method, *(f"{100 * (trial.validation_map or 0.0):.1f}" for trial in (found.trials[0], found.best)),
         found.best.label)
        for method, found in record.methods.items()
    ]  # fmt: skip
    caption = f"{record.recipe}: best validation mAP, points, on {record.validation}"
    headings = ("", "first setting", "best setting", "label")
    return Table(caption, headings, (False, True, True, False), tuple(rows)).plain()


def _run_study(arguments: StudyArguments) -> dict[str, Any]:
    """Train the unfinished runs, evaluate all runs, and write the tables and charts."""
    from ifkd.study.figures.plotting import require_matplotlib
    from ifkd.study.figures.results import draw_sensitivity
    from ifkd.study.learning_curves import read_learning_curves
    from ifkd.study.study_record import TEACHER
    from ifkd.study.study_report import study_table, write_study

    study = _plan(arguments, _variants(arguments))
    if isinstance(arguments, SweepArguments):
        require_matplotlib()  # before the training, which takes hours
    record = study.report() if arguments.report_only else study.run()
    curves = {label: read_learning_curves(study.finished_folders(label)) for label in (TEACHER, *record.students)}
    paths = write_study(record, study.folder, curves)
    if any(record.finished(label) for label in record.parameter_values):
        draw_sensitivity(record, study.folder / "figures")
    if not arguments.json:
        unfinished = [f"not finished: {', '.join(record.unfinished)}"] if record.unfinished else []
        print(study_table(record).plain(), *record.verdict, *unfinished, paths[-1], sep="\n")  # noqa: T201
    return record.model_dump(mode="json")


def _plan(arguments: TrainingArguments, variants: "tuple[Variant, ...]") -> "Study":
    from ifkd.core.config import load
    from ifkd.recipe import IfkdOptions, Recipe
    from ifkd.study.study import Study

    recipe = load(arguments.recipe, Recipe, arguments.set)
    if not isinstance(method := recipe.distillation.method, IfkdOptions):
        problem = f"The method of {arguments.recipe} must be IFKD, because its options apply to the IFKD variants"
        raise UsageError(problem, got=method.name)
    folder = FOLDERS.get(arguments.study_command, arguments.study_command)
    tuned = arguments.tuned if isinstance(arguments, CompareArguments) else None
    return Study(
        folder=arguments.out or Path("runs") / recipe.name / folder,
        recipe_path=arguments.recipe,
        overrides=tuple(arguments.set),
        variants=variants,
        seeds=arguments.seeds,
        title=TITLES[arguments.study_command],
        dataset=arguments.paper if isinstance(arguments, StudyArguments) else None,
        jobs=arguments.jobs,
        processes=arguments.processes,
        notes=_tuning_note(tuned) if tuned else {},
    )


def _tuning_note(path: Path) -> dict[str, str]:
    from ifkd.study.tuning import read_tuning_record

    record = read_tuning_record(path)
    trials = max(len(found.trials) for found in record.methods.values())
    seeds = ", ".join(map(str, record.seeds))
    text = f"the best of {trials} settings of each method by the mAP on {record.validation}, seeds {seeds}"
    return {"tuned rows": f"{text}; recipe {record.recipe}. Other rows have published weights, or the recipe's (IFKD)."}


def _variants(arguments: StudyArguments) -> "tuple[Variant, ...]":
    from ifkd.study.variants import ablation_variants, sweep_variants

    if isinstance(arguments, CompareArguments):
        return _compared_variants(arguments)
    if isinstance(arguments, AblateArguments):
        return ablation_variants(with_at=not arguments.without_at)
    assert isinstance(arguments, SweepArguments)
    return sweep_variants(arguments.parameter, arguments.values)


def _compared_variants(arguments: CompareArguments) -> "tuple[Variant, ...]":
    from ifkd.study.tuning import read_tuning_record, tuned_variants
    from ifkd.study.variants import comparison_variants, custom_variant, require_distinct, supported_methods

    methods = arguments.methods or supported_methods(arguments.recipe, arguments.set)
    tuned = tuned_variants(read_tuning_record(arguments.tuned), methods, arguments.tuned) if arguments.tuned else ()
    custom = [custom_variant(label, overrides) for label, *overrides in arguments.variant]
    variants = (*comparison_variants(methods), *tuned, *custom)
    require_distinct(variants)
    return variants

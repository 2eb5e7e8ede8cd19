"""`ifkd study`: many students under one recipe, and the tables and figures they give."""

import argparse
from pathlib import Path
from typing import Any

TITLES = {"compare": "Methods compared", "ablate": "IFKD part by part", "sweep": "IFKD under other weights"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    compare = studies.add_parser("compare", help="methods beside each other, as in the paper's Table 3")
    compare.add_argument("--methods", nargs="+", metavar="NAME", help="by default all")
    ablate = studies.add_parser("ablate", help="IFKD's three parts on and off, as in the paper's Table 4")
    ablate.add_argument("--without-at", action="store_true", help="leave attention transfer out of all rows")
    sweep = studies.add_parser("sweep", help="IFKD under several alpha or beta, as in the paper's Figure 5")
    sweep.add_argument("--parameter", default="alpha", choices=("alpha", "beta"))
    sweep.add_argument("--values", nargs="+", type=float, metavar="V", default=[], help="by default the paper's range")
    figures = studies.add_parser("figures", help="the paper's Figures 3 to 6 and diagnostics, of a study's folder")
    _configure_figures(figures)
    for one in (compare, ablate, sweep, figures):
        # so that they may stand after the study's name as well
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON")
        one.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="tell more")
    for one in (compare, ablate, sweep):
        one.add_argument("recipe", type=Path, help="the recipe, a TOML file; its method is IFKD with its options")
        one.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="values that replace the recipe's")
        one.add_argument(
            "--seeds", type=int, default=3, metavar="N", help="runs of each, from the recipe's seed on (3)"
        )
        one.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (1)")
        one.add_argument("--processes", type=int, default=1, metavar="N", help="processes of one run, by torchrun (1)")
        one.add_argument(
            "--paper", choices=("sar_aircraft", "shiprsimagenet"), help="print the paper's figures for this set beside"
        )
        one.add_argument(
            "--report-only",
            action="store_true",
            help="train nothing: report what is finished, and what is not",
        )
        one.add_argument("--out", type=Path, help="the study's folder (runs/NAME/compare, ablate or sweep)")


def _configure_figures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the study's folder, with its teacher's run and its students'")
    parser.add_argument("--images", nargs="+", metavar="ID", default=[], help="image ids or file names to show")
    parser.add_argument("--count", type=int, default=3, metavar="N", help="images to choose where none are named (3)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the data set lies (where the recipe says)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="whose images (test)")
    parser.add_argument("--seed", type=int, metavar="S", help="whose students (the lowest)")
    parser.add_argument("--ifkd", metavar="LABEL", help="the variant that stands for IFKD (the whole method)")
    parser.add_argument("--level", choices=("p2", "p3", "p4", "p5", "p6", "p7"), help="of the maps (the finest)")
    parser.add_argument("--threshold", type=float, default=0.3, metavar="T", help="least score of a detection (0.3)")
    parser.add_argument("--out", type=Path, help="where (FOLDER/figures)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run a study and write its tables, or draw its figures."""
    return _figures(options) if options.study == "figures" else _study(options)


def _figures(options: argparse.Namespace) -> dict[str, Any]:
    from ifkd.core.errors import UsageError
    from ifkd.study.figures.write_figures import FigureRequest, write_figures

    if options.count < 1:
        raise UsageError("--count must be at least 1", got=options.count)
    if not 0 <= options.threshold <= 1:
        raise UsageError("--threshold must lie between 0 and 1", got=options.threshold)
    folder = options.out or options.folder / "figures"
    request = FigureRequest(
        seed=options.seed,
        label=options.ifkd,
        root=options.root,
        split=options.split,
        images=tuple(options.images),
        count=options.count,
        level=options.level,
        least_score=options.threshold,
    )
    record = write_figures(options.folder, folder, request)
    if not options.json:
        for name, files in record.figures.items():
            print(f"{name}: {', '.join(files)}")  # noqa: T201
        for name, reason in record.left_out.items():
            print(f"left out: {name}, as {reason}")  # noqa: T201
        print(folder)  # noqa: T201
    return record.model_dump(mode="json")


def _study(options: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, test everything, and write the tables."""
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError
    from ifkd.recipe import IfkdOptions, Recipe
    from ifkd.study.figures.drawing import need_matplotlib
    from ifkd.study.figures.sensitivity import draw_sensitivity
    from ifkd.study.learning_curves import learning
    from ifkd.study.study import Study
    from ifkd.study.study_record import TEACHER
    from ifkd.study.study_report import study_table, write_study

    for name in ("seeds", "jobs", "processes"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1", got=getattr(options, name))
    recipe = load(options.recipe, Recipe, options.set)
    if not isinstance(recipe.distillation.method, IfkdOptions):
        raise UsageError(
            f"{options.recipe} must name IFKD as its method, whose options the study keeps",
            got=recipe.distillation.method.name,
        )
    study = Study(
        options.out or Path("runs") / recipe.name / options.study,
        options.recipe,
        tuple(options.set),
        seeds=options.seeds,
        jobs=options.jobs,
        processes=options.processes,
    )
    variants = _variants(options)
    if options.study == "sweep":
        need_matplotlib()  # before hours of training, not after
    found = study.finished(variants) if options.report_only else study.run(variants)
    record = study.record(found, variants, title=TITLES[options.study], data_set=options.paper)
    learned = {label: learning(study.folders(label)) for label in (TEACHER, *record.students)}
    paths = write_study(record, study.folder, learned)
    if any(record.finished(label) for label in record.values):
        draw_sensitivity(record, study.folder / "figures")
    if not options.json:
        print(study_table(record).plain())  # noqa: T201
        if record.missing:
            print(f"not finished: {', '.join(record.missing)}")  # noqa: T201
        print(paths[-1])  # noqa: T201
    return record.model_dump(mode="json")


def _variants(options: argparse.Namespace) -> list[Any]:
    from ifkd.study.variant import METHODS, ablated, compared, swept

    match options.study:
        case "compare":
            return compared(options.methods or METHODS, own="ifkd")
        case "ablate":
            return ablated(with_at=not options.without_at)
        case _:
            return swept(options.parameter, options.values)

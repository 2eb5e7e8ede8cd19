"""`ifkd study`: many students under one recipe, and the table they give."""

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
    for one in (compare, ablate, sweep):
        # so that they may stand after the study's name as well
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON")
        one.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="tell more")
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


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, test everything, and write the tables."""
    from ifkd.config import load
    from ifkd.errors import UsageError
    from ifkd.recipe import Ifkd, Recipe
    from ifkd.study.curves import learning
    from ifkd.study.figures.drawing import need_matplotlib
    from ifkd.study.figures.sensitivity import draw_sensitivity
    from ifkd.study.report import TEACHER, study_table, write_study
    from ifkd.study.study import Study

    for name in ("seeds", "jobs", "processes"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1", got=getattr(options, name))
    recipe = load(options.recipe, Recipe, options.set)
    if not isinstance(recipe.distillation.method, Ifkd):
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

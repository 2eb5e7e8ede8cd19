"""`ifkd distill`: train a recipe's student with its distillation method and a trained teacher."""

import argparse
from pathlib import Path
from typing import Any

from deploy import cli
from deploy.cli.train import add_run_arguments, report_result


class Arguments(cli.Arguments):
    """Arguments of `ifkd distill`."""

    recipe: Path
    overrides: list[str]
    teacher: Path | None
    out: Path | None
    no_resume: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    purpose = "the teacher's checkpoint (default: runs/NAME/teacher/best.safetensors)"
    parser.add_argument("--teacher", type=Path, metavar="CHECKPOINT", help=purpose)
    add_run_arguments(parser, default_folder="runs/NAME/distilled")


def run(arguments: Arguments) -> dict[str, Any] | None:
    """Distill or resume, and return the result on rank 0."""
    from ifkd.compute.distributed import process_group
    from ifkd.core.config import load
    from ifkd.recipe import Recipe
    from ifkd.training.pipelines import distill_student
    from ifkd.training.run_folder import RunFolder

    recipe = load(arguments.recipe, Recipe, arguments.overrides)
    runs = Path("runs") / recipe.name
    folder = arguments.out or runs / "distilled"
    teacher = arguments.teacher or RunFolder(runs / "teacher").best
    with process_group():
        result = distill_student(recipe, teacher, folder, resume=not arguments.no_resume)
        return report_result(result, folder, quiet=arguments.json)

"""`ifkd train`: train a recipe's teacher or student alone, or its screen."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy import cli

if TYPE_CHECKING:
    from ifkd.training.run_folder import TrainingResult


class Arguments(cli.Arguments):
    """Arguments of `ifkd train`."""

    recipe: Path
    overrides: list[str]
    role: Literal["teacher", "student", "screen"]
    teacher: Path | None
    out: Path | None
    no_resume: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    roles, purpose = ("teacher", "student", "screen"), "the network to train (default: student)"
    parser.add_argument("--role", choices=roles, default="student", help=purpose)
    teacher = "detector whose detections a screen learns beside the labels, such as the one to be exported"
    parser.add_argument("--teacher", type=Path, metavar="CHECKPOINT", help=teacher)
    add_run_arguments(parser, default_folder="runs/NAME/ROLE")


def add_run_arguments(parser: argparse.ArgumentParser, *, default_folder: str) -> None:
    """Add the recipe, its overrides, and the options of a run's folder."""
    parser.add_argument("recipe", type=Path, help="the recipe, a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that replace those of the recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"the run's folder (default: {default_folder})")
    parser.add_argument("--no-resume", action="store_true", help="delete an earlier run in the folder and start again")


def run(arguments: Arguments) -> dict[str, Any] | None:
    """Train or resume, and return the result on rank 0."""
    from ifkd.compute.distributed import process_group
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError
    from ifkd.recipe import Recipe
    from ifkd.screen.screen_training import train_screen
    from ifkd.training.pipelines import train_role

    if arguments.teacher is not None and arguments.role != "screen":
        hint = "Use `ifkd distill` to train a student with a teacher."
        raise UsageError("--teacher needs --role screen", got=arguments.role, hint=hint)
    recipe = load(arguments.recipe, Recipe, arguments.overrides)
    folder, resume = arguments.out or Path("runs") / recipe.name / arguments.role, not arguments.no_resume
    with process_group():
        if arguments.role == "screen":
            result = train_screen(recipe, folder, teacher=arguments.teacher, resume=resume)
        else:
            result = train_role(recipe, arguments.role, folder, resume=resume)
        return report_result(result, folder, quiet=arguments.json)


def report_result(result: "TrainingResult", folder: Path, *, quiet: bool) -> dict[str, Any] | None:
    """Print the result on rank 0 unless `quiet`, and return it with the path of the checkpoint."""
    from ifkd.compute.distributed import rank

    if rank() > 0:
        return None
    checkpoint, best = folder / result.checkpoint, result.best_validation_map
    if not quiet:
        score = "validation mAP n/a" if best is None else f"validation mAP {best:.3f}"
        time = f"{result.epochs} epochs ({result.train_seconds / 60:.1f} min)"
        print(f"{result.label}: {score} after {time}\n{checkpoint}")  # noqa: T201
    return {**result.model_dump(mode="json"), "checkpoint": str(checkpoint)}

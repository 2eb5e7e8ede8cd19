"""`ifkd distill`: the student learns from the teacher."""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", type=Path, help="the recipe, a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that replace the recipe's")
    parser.add_argument("--teacher", type=Path, help="the teacher's checkpoint (runs/NAME/teacher/best.safetensors)")
    parser.add_argument("--out", type=Path, help="the run's folder (runs/NAME/distilled)")
    parser.add_argument("--no-resume", action="store_true", help="begin anew, deleting an earlier run in the folder")


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Distill, or go on distilling."""
    from deploy.cli.train import announce
    from ifkd.compute.distributed import peers
    from ifkd.core.config import load
    from ifkd.recipe import Recipe
    from ifkd.training.pipelines import distill_student

    recipe = load(options.recipe, Recipe, options.overrides)
    runs = Path("runs") / recipe.name
    folder = options.out or runs / "distilled"
    teacher = options.teacher or runs / "teacher" / "best.safetensors"
    with peers():
        result = distill_student(recipe, teacher, folder, restart=options.no_resume)
        return announce(result, folder, quiet=options.json)

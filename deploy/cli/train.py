"""`ifkd train`: a recipe's teacher or student alone."""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", type=Path, help="the recipe, a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that replace the recipe's")
    parser.add_argument("--role", choices=["teacher", "student"], default="student", help="which detector (student)")
    parser.add_argument("--out", type=Path, help="the run's folder (runs/NAME/ROLE)")
    parser.add_argument("--no-resume", action="store_true", help="begin anew, deleting an earlier run in the folder")


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or go on training."""
    from ifkd.compute.distributed import peers
    from ifkd.core.config import load
    from ifkd.recipe import Recipe
    from ifkd.training.pipelines import train_role

    recipe = load(options.recipe, Recipe, options.overrides)
    folder = options.out or Path("runs") / recipe.name / options.role
    with peers():
        result = train_role(recipe, options.role, folder, restart=options.no_resume)
        return announce(result, folder, quiet=options.json)


def announce(result: dict[str, Any], folder: Path, *, quiet: bool) -> dict[str, Any] | None:
    """Say, on rank 0, what a run reached and where its checkpoint lies."""
    from ifkd.compute.distributed import rank

    if rank() > 0:
        return None
    result = {**result, "checkpoint": str(folder / result["checkpoint"])}
    if not quiet:
        print(  # noqa: T201
            f"{result['label']}: validation mAP {result['best_validation_map']:.3f} after {result['epochs']} epochs "
            f"({result['seconds'] / 60:.1f} min)\n{result['checkpoint']}"
        )
    return result

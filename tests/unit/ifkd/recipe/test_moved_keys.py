"""Keys of earlier versions are refused with their new place."""

from typing import Any

import pytest

from ifkd.core.config import override, parse
from ifkd.core.errors import ConfigError
from ifkd.recipe import Recipe
from ifkd.recipe.moved_keys import MOVED_KEYS, moved_keys

MINIMAL: dict[str, Any] = {
    "name": "minimal",
    "data": {"train": "train.json", "validation": "val.json", "test": "test.json"},
    "teacher": {"detector": {"backbone": "resnet50"}, "training": {}},
    "student": {"detector": {"backbone": "resnet18"}, "training": {}},
    "distillation": {"training": {}, "method": {"name": "none"}},
}


def test_all_moved_keys_are_in_the_hint(recipe_values: dict[str, Any]) -> None:
    recipe_values["selection"] = {"score_threshold": 0.1}
    recipe_values["student"]["training"]["optimizer"] = "adamw"
    recipe_values["distillation"]["training"].update(steps=[8, 11], epochs=0)
    with pytest.raises(ConfigError) as caught:
        parse(recipe_values, Recipe, source="r.toml")
    assert caught.value.report() == (
        "error: r.toml has keys of an earlier version.\n"
        "hint: Move selection to postprocess, training.optimizer to training.optimizer.name, "
        "training.steps to training.schedule.milestones."
    )


def test_an_override_of_a_moved_key_is_refused() -> None:
    recipe = Recipe.model_validate(MINIMAL)
    with pytest.raises(ConfigError, match=r"Move training\.warmup_iters to training\.schedule\.warmup_iters\."):
        override(recipe, ("student.training.warmup_iters=3",), source="r.toml")


def test_every_new_key_is_valid() -> None:
    values = Recipe.model_validate(MINIMAL).model_dump()
    for new in MOVED_KEYS.values():
        table: Any = values["student"] if new.startswith("training.") else values
        for part in new.split("."):
            assert part in table, new
            table = table[part]
    assert moved_keys(values) == {}

"""Recipe keys of earlier versions and the keys that replace them."""

from collections.abc import Iterator
from typing import Any

MOVED_KEYS = {
    "selection": "postprocess",
    "data.memory_mb": "data.cache_mb",
    "distillation.cache_for": "distillation.cache_scope",
    "export.scene_score": "export.scene_score_threshold",
    "training.optimizer": "training.optimizer.name",
    "training.learning_rate": "training.optimizer.learning_rate",
    "training.learning_rate_batch": "training.optimizer.base_batch_size",
    "training.momentum": "training.optimizer.momentum",
    "training.weight_decay": "training.optimizer.weight_decay",
    "training.grad_clip": "training.optimizer.grad_clip",
    "training.schedule": "training.schedule.name",
    "training.steps": "training.schedule.milestones",
    "training.warmup_iters": "training.schedule.warmup_iters",
    "training.warmup_factor": "training.schedule.warmup_factor",
    "training.amp": "training.compute.amp",
    "training.channels_last": "training.compute.channels_last",
    "training.compile": "training.compute.compile",
    "training.sync_norm": "training.compute.sync_batch_norm",
    "training.accumulation": "training.accumulation_steps",
    "training.save_minutes": "training.save_every_minutes",
}
"""Dotted keys; `training` stands for the table of each of the three runs."""
TABLES = ("training.optimizer", "training.schedule")
"""Keys that are still there, as tables."""


def moved_keys(values: dict[str, Any]) -> dict[str, str]:
    """Return the entries of MOVED_KEYS whose old key is in the values of a recipe."""
    old = {key for key, value in _options(values) if not (key in TABLES and isinstance(value, dict))}
    return {key: new for key, new in MOVED_KEYS.items() if key in old}


def _options(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, part in values.items():
        yield name, part
        for option, value in part.items() if isinstance(part, dict) else ():
            yield f"{name}.{option}", value
            if option == "training" and isinstance(value, dict):
                yield from ((f"training.{key}", setting) for key, setting in value.items())

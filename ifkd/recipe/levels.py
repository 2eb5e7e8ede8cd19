"""Feature pyramid levels of each detector family, and choices of them."""

from typing import Literal

Family = Literal["retinanet", "faster_rcnn"]
Level = Literal["p2", "p3", "p4", "p5", "p6", "p7"]
LEVELS: dict[Family, tuple[Level, ...]] = {
    "retinanet": ("p3", "p4", "p5", "p6", "p7"),
    "faster_rcnn": ("p2", "p3", "p4", "p5", "p6"),
}
"""Levels of each family, finest first; level pN has a stride of 2^N pixels."""
LevelChoice = tuple[Level, ...] | Literal["all", "two_finest", "four_finest", "three_coarsest"]
"""Levels by name, or a named subset."""
SUBSETS = {"all": slice(None), "two_finest": slice(2), "four_finest": slice(4), "three_coarsest": slice(-3, None)}


def select_levels(choice: LevelChoice, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Return the chosen levels of a detector that has `levels`, finest first."""
    if isinstance(choice, str):
        return levels[SUBSETS[choice]]
    return tuple(level for level in levels if level in choice)

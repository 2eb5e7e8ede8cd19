"""The levels of a detector's pyramid, and the choice of some of them."""

from typing import Literal

Family = Literal["retinanet", "faster_rcnn"]
Level = Literal["p2", "p3", "p4", "p5", "p6", "p7"]
LEVELS: dict[Family, tuple[Level, ...]] = {
    "retinanet": ("p3", "p4", "p5", "p6", "p7"),
    "faster_rcnn": ("p2", "p3", "p4", "p5", "p6"),
}
"""Each family's pyramid, finest level first; level pN has a stride of 2^N pixels."""
LevelChoice = tuple[Level, ...] | Literal["all", "two_finest", "four_finest", "three_coarsest"]
"""Some levels of the detector's pyramid, by name or by place, or all it has."""


def chosen_levels(choice: LevelChoice, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Return those of a detector's `levels` that are chosen."""
    match choice:
        case "all":
            return levels
        case "two_finest":
            return levels[:2]
        case "four_finest":
            return levels[:4]
        case "three_coarsest":
            return levels[-3:]
        case _:
            return tuple(level for level in levels if level in choice)

"""ShipRSImageNet's class tree: 50 types, 25 sub-categories, 4 categories, 2 kinds, each in the order of its ids."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShipClass:
    """A type and what it belongs to."""

    name: str
    """Level 3."""
    sub_category: str
    """Level 2."""
    category: str
    """Level 1."""

    def at(self, level: int) -> str:
        """Return its class at a level from 0 to 3."""
        kind = "Dock" if self.category == "Dock" else "Ship"
        return (kind, self.category, self.sub_category, self.name)[level]


TYPES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Other Ship", "Other Ship", ("Other Ship",)),
    ("Other Warship", "Warship", ("Other Warship",)),
    ("Submarine", "Warship", ("Submarine",)),
    ("Aircraft Carrier", "Warship", ("Other Aircraft Carrier", "Enterprise", "Nimitz", "Midway")),
    ("Cruiser", "Warship", ("Ticonderoga",)),
    (
        "Destroyer",
        "Warship",
        ("Other Destroyer", "Atago DD", "Arleigh Burke DD", "Hatsuyuki DD", "Hyuga DD", "Asagiri DD"),
    ),
    ("Frigate", "Warship", ("Other Frigate", "Perry FF")),
    ("Patrol", "Warship", ("Patrol",)),
    (
        "Landing",
        "Warship",
        (
            "Other Landing",
            "YuTing LL",
            "YuDeng LL",
            "YuDao LL",
            "YuZhao LL",
            "Austin LL",
            "Osumi LL",
            "Wasp LL",
            "LSD 41 LL",
            "LHA LL",
        ),
    ),
    ("Commander", "Warship", ("Commander",)),
    (
        "Auxiliary Ships",
        "Warship",
        (
            "Other Auxiliary Ship",
            "Medical Ship",
            "Test Ship",
            "Training Ship",
            "AOE",
            "Masyuu AS",
            "Sanantonio AS",
            "EPF",
        ),
    ),
    *(
        (name, "Merchant", (name,))
        for name in (
            "Other Merchant",
            "Container Ship",
            "RoRo",
            "Cargo",
            "Barge",
            "Tugboat",
            "Ferry",
            "Yacht",
            "Sailboat",
            "Fishing Vessel",
            "Oil Tanker",
            "Hovercraft",
            "Motorboat",
        )
    ),
    ("Dock", "Dock", ("Dock",)),
)

CLASSES = tuple(ShipClass(name, sub, category) for sub, category, names in TYPES for name in names)
"""By level-3 id, less one."""
LEVEL_NAMES: tuple[tuple[str, ...], ...] = tuple(
    tuple(dict.fromkeys(ship.at(level) for ship in CLASSES)) for level in range(4)
)
"""Class names of each level, by id less one."""

"""Class tree of ShipRSImageNet: 2 kinds, 4 categories, 25 subcategories and 50 types, each in the order of its ids."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShipClass:
    """A type of ship and the classes it belongs to."""

    name: str
    """Level 3."""
    subcategory: str
    """Level 2."""
    category: str
    """Level 1."""

    def at(self, level: int) -> str:
        """Return its class at a level, 0 to 3."""
        kind = "Dock" if self.category == "Dock" else "Ship"
        return (kind, self.category, self.subcategory, self.name)[level]


MERCHANT_SHIPS = (
    "Other Merchant, Container Ship, RoRo, Cargo, Barge, Tugboat, Ferry, Yacht, Sailboat, Fishing Vessel, Oil Tanker, "
    "Hovercraft, Motorboat"
)
TYPES = (
    ("Other Ship", "Other Ship", "Other Ship"),
    ("Warship", "Other Warship", "Other Warship"),
    ("Warship", "Submarine", "Submarine"),
    ("Warship", "Aircraft Carrier", "Other Aircraft Carrier, Enterprise, Nimitz, Midway"),
    ("Warship", "Cruiser", "Ticonderoga"),
    ("Warship", "Destroyer", "Other Destroyer, Atago DD, Arleigh Burke DD, Hatsuyuki DD, Hyuga DD, Asagiri DD"),
    ("Warship", "Frigate", "Other Frigate, Perry FF"),
    ("Warship", "Patrol", "Patrol"),
    (
        "Warship",
        "Landing",
        "Other Landing, YuTing LL, YuDeng LL, YuDao LL, YuZhao LL, Austin LL, Osumi LL, Wasp LL, LSD 41 LL, LHA LL",
    ),
    ("Warship", "Commander", "Commander"),
    (
        "Warship",
        "Auxiliary Ships",
        "Other Auxiliary Ship, Medical Ship, Test Ship, Training Ship, AOE, Masyuu AS, Sanantonio AS, EPF",
    ),
    *(("Merchant", name, name) for name in MERCHANT_SHIPS.split(", ")),
    ("Dock", "Dock", "Dock"),
)
"""(category, subcategory, its types)."""

CLASSES = tuple(
    ShipClass(name, subcategory, category) for category, subcategory, names in TYPES for name in names.split(", ")
)
"""Types by level-3 id minus one."""
LEVEL_NAMES: tuple[tuple[str, ...], ...] = tuple(
    tuple(dict.fromkeys(ship.at(level) for ship in CLASSES)) for level in range(4)
)
"""Class names of each level by id minus one."""

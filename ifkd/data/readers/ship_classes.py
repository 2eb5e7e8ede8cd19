"""Class tree of ShipRSImageNet: 2 kinds, 4 categories, 25 subcategories and 50 types, each in the order of its ids."""

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

CLASS_PATHS = {
    name: ("Dock" if category == "Dock" else "Ship", category, subcategory, name)
    for category, subcategory, names in TYPES
    for name in names.split(", ")
}
"""Type -> its classes of levels 0 to 3; the types are in the order of their ids."""
LEVEL_NAMES = tuple(tuple(dict.fromkeys(path[level] for path in CLASS_PATHS.values())) for level in range(4))
"""Class names of each level by id minus one."""

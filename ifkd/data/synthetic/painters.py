"""Who paints a data set: ships seen by an optical sensor, or aircraft seen by a radar."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from ifkd.core import config as configuration
from ifkd.data.synthetic.config import Synthetic
from ifkd.data.synthetic.picture import Painter
from ifkd.data.synthetic.sar.airfield import make_airfields
from ifkd.data.synthetic.sar.config import SarAircraft
from ifkd.data.synthetic.sar.picture import SarPainter
from ifkd.data.synthetic.world import make_world

AnySynthetic = Synthetic | SarAircraft
WorldPainter = Painter | SarPainter
"""Both answer `boxes`, `paint` and `truths`; what they paint does not depend on how a world is cut into windows."""


def painter_of(
    config: AnySynthetic, *, place: tuple[int, ...], size_px: tuple[int, int], objects: int, wide: bool
) -> WorldPainter:
    """Return the painter of a place.

    Args:
        config: The data set's configuration.
        place: Numbers that name the place; with the configuration they decide everything in it.
        size_px: Height and width.
        objects: How many ships or aircraft to place; fewer where they find no room.
        wide: Whether the place is a scene rather than a place tiles are cut from.
    """
    if isinstance(config, SarAircraft):
        return SarPainter(make_airfields(config, place=place, size_px=size_px, count=objects), config)
    return Painter(make_world(config, place=place, size_px=size_px, ships=objects, wide=wide), config)


def load_synthetic(path: Path, overrides: Sequence[str] = ()) -> AnySynthetic:
    """Read the configuration of a data set; a file that states a `modality` is of that, others are of ships.

    Raises:
        ConfigError: The file is absent or holds mistakes.
    """
    try:
        states_one = "modality" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        states_one = False  # read again below, where mistakes are told
    schema: type[SarAircraft | Synthetic] = SarAircraft if states_one else Synthetic
    return configuration.load(path, schema, overrides)

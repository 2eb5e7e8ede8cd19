"""Configuration and painter of a data set, of either modality."""

from collections.abc import Sequence
from pathlib import Path

from ifkd.core.config import load, read_toml
from ifkd.data.synthetic.config import AircraftDatasetConfig, AnySynthetic, ShipDatasetConfig
from ifkd.data.synthetic.optical.painter import ShipPainter
from ifkd.data.synthetic.optical.world import make_world
from ifkd.data.synthetic.sar.airfield import make_airfields
from ifkd.data.synthetic.sar.painter import SarPainter

WorldPainter = ShipPainter | SarPainter
"""Both have `boxes`, `paint` and `labels`; the pixels do not depend on how a world is cut into windows."""


def painter_of(
    config: AnySynthetic, *, place: tuple[int, ...], size_px: tuple[int, int], objects: int, wide: bool
) -> WorldPainter:
    """Return the painter of a place of `size_px` (height, width) with about so many ships or aircraft.

    The numbers of `place` and the configuration determine everything in it; a `wide` one is a scene.
    """
    if isinstance(config, AircraftDatasetConfig):
        return SarPainter(make_airfields(config, place=place, size_px=size_px, count=objects), config)
    return ShipPainter(make_world(config, place=place, size_px=size_px, ships=objects, wide=wide), config)


def load_synthetic(path: Path, overrides: Sequence[str] = ()) -> AnySynthetic:
    """Read the configuration of a data set: of aircraft if the file has a `modality`, otherwise of ships.

    Raises:
        ConfigError: The file is absent or has mistakes.
    """
    schema: type[AnySynthetic] = AircraftDatasetConfig if "modality" in read_toml(path) else ShipDatasetConfig
    return load(path, schema, overrides)

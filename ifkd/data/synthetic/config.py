"""Configuration of synthetic data sets; configs/demo_data.toml and configs/sar_aircraft_data.toml explain all keys."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, PositiveFloat

from ifkd.core.config import Schema

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=64)]
GroundSampleDistance = Annotated[float, Field(ge=0.5, le=5.0)]
ShipClass = Literal["aircraft_carrier", "destroyer", "frigate", "container_ship", "oil_tanker", "bulk_carrier", "ferry"]
SHIP_CLASSES: tuple[ShipClass, ...] = get_args(ShipClass)
AircraftClass = Literal["a220", "a320", "a330", "arj21", "boeing737", "boeing787"]
AIRCRAFT_CLASSES: tuple[AircraftClass, ...] = get_args(AircraftClass)
SPLITS = ("train", "validation", "test")


def _distinct(classes: tuple[str, ...]) -> tuple[str, ...]:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"expected at least one name, each once, got {list(classes)}")
    return classes


@dataclass(frozen=True, slots=True)
class ModalityTraits:
    """The values that the configurations of ships and of aircraft name differently."""

    classes: tuple[str, ...]
    per_tile: float
    anywhere: float
    per_km2: float
    dtype: str
    bands: int


class SplitSizes(Schema):
    """Number of tiles of each split; no place is in two splits."""

    train: Count = 480
    validation: Count = 60
    test: Count = 120
    per_place: Annotated[int, Field(ge=1, le=16)] = 5
    """Tiles of one imaginary place, which is four tiles wide and high; none overlaps another."""


class ShipImages(SplitSizes):
    """Tiles of coasts."""

    without_ships: Fraction = 0.03


class SarImages(SplitSizes):
    """Tiles of airfields."""

    without_aircraft: Fraction = 0.06


class Ships(Schema):
    """Classes and number of ships, and how similar they are."""

    classes: Annotated[tuple[ShipClass, ...], AfterValidator(_distinct)] = SHIP_CLASSES
    per_tile: PositiveFloat = 24.0
    moored_fraction: Fraction = 0.5
    rafted_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Chance that another ship is moored alongside a moored one, on the side of the water."""
    under_way_fraction: Fraction = 0.5
    similarity: Fraction = 0.05
    """0: classes keep their own size and paint; 1: sizes and paints of look-alikes are mixed."""


class Conditions(Schema):
    """Weather, water and sensor: fractions of places, and strengths."""

    cloud_fraction: Fraction = 0.08
    haze_fraction: Fraction = 0.1
    glint: Fraction = 0.5
    waves: Fraction = 0.5
    land_fraction: Fraction = 0.35
    small_boats: Fraction = 0.5
    blur_px: Annotated[float, Field(ge=0.0, le=2.0)] = 0.55
    noise_dn: Annotated[float, Field(ge=0.0, le=30.0)] = 2.0


class SceneLayout(Schema):
    """Position of wide-swath GeoTIFF scenes on the map, and their layout on disk."""

    count: Count = 1
    size_px: tuple[Side, Side] = (4096, 4096)
    """Height and width."""
    crs: str = "EPSG:32633"
    origin: tuple[float, float] = (392000.0, 5060000.0)
    """Easting and northing of the first scene's north-western corner; the next ones are east of it."""
    block_px: Annotated[int, Field(ge=16, multiple_of=16)] = 512


class ShipScenes(SceneLayout):
    """Scenes of coasts; the area includes land."""

    ships_per_km2: PositiveFloat = 4.0


class SarScenes(SceneLayout):
    """Scenes of airfields, one band."""

    aircraft_per_km2: PositiveFloat = 4.0


class Aircraft(Schema):
    """Types and number of aircraft, and how similar they are."""

    classes: Annotated[tuple[AircraftClass, ...], AfterValidator(_distinct)] = AIRCRAFT_CLASSES
    per_tile: PositiveFloat = 5.0
    taxiing_fraction: Fraction = 0.12
    fluctuation_db: Annotated[float, Field(ge=0.0, le=12.0)] = 3.0
    missing_fraction: Fraction = 0.15


class Radar(Schema):
    """The sensor, which looks to the right of the image."""

    bits: Literal[8, 16] = 8
    looks: Annotated[int, Field(ge=1, le=16)] = 2
    incidence_deg: Annotated[float, Field(ge=15.0, le=65.0)] = 38.0
    resolution_px: Annotated[float, Field(ge=1.0, le=3.0)] = 1.5


class ShipDatasetConfig(Schema):
    """A synthetic data set of ships in optical images."""

    seed: Count = 7
    tile_px: Side = 256
    gsd_m: GroundSampleDistance = 2.0
    images: ShipImages = ShipImages()
    ships: Ships = Ships()
    conditions: Conditions = Conditions()
    scenes: ShipScenes = ShipScenes()

    @property
    def traits(self) -> ModalityTraits:
        """Values that both modalities have."""
        ships, anywhere, per_km2 = self.ships, self.images.without_ships, self.scenes.ships_per_km2
        return ModalityTraits(ships.classes, ships.per_tile, anywhere, per_km2, "uint8", 3)


class AircraftDatasetConfig(Schema):
    """A synthetic data set of aircraft in SAR amplitude images."""

    modality: Literal["sar_aircraft"]
    seed: Count = 7
    tile_px: Side = 256
    gsd_m: GroundSampleDistance = 1.0
    images: SarImages = SarImages()
    aircraft: Aircraft = Aircraft()
    radar: Radar = Radar()
    scenes: SarScenes = SarScenes()

    @property
    def traits(self) -> ModalityTraits:
        """Values that both modalities have."""
        one, anywhere, per_km2 = self.aircraft, self.images.without_aircraft, self.scenes.aircraft_per_km2
        return ModalityTraits(one.classes, one.per_tile, anywhere, per_km2, f"uint{self.radar.bits}", 1)


AnySynthetic = ShipDatasetConfig | AircraftDatasetConfig

"""What a synthetic data set of SAR aircraft is made of; configs/sar_aircraft_data.toml is a complete, commented one."""

from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ifkd.core.config import Schema
from ifkd.data.synthetic.config import Count, SceneLayout, Share

AircraftClass = Literal["a220", "a320", "a330", "arj21", "boeing737", "boeing787"]
AIRCRAFT_CLASSES: tuple[AircraftClass, ...] = get_args(AircraftClass)


class SarImages(Schema):
    """How many tiles each split holds. Splits never share a place."""

    train: Count = 480
    validation: Count = 60
    test: Count = 120
    per_place: PositiveInt = 5
    """Tiles cut, without overlap, from one imaginary airfield of 4x4 tiles."""
    without_aircraft: Share = 0.06
    """Share of tiles cut anywhere in their place; many show no aircraft."""


class Aircraft(Schema):
    """Which aircraft stand there, how many, and how hard they are to tell apart."""

    classes: tuple[AircraftClass, ...] = AIRCRAFT_CLASSES
    """In the order of the category ids, which start at 1."""
    per_tile: PositiveFloat = 5.0
    """Aircraft that a tile is meant to show, on average."""
    taxiing_share: Share = 0.12
    """Share of aircraft on taxiways and runways; the others are parked."""
    fluctuation_db: Annotated[float, Field(ge=0.0, le=12.0)] = 3.0
    """Standard deviation of a scattering centre's strength from aircraft to aircraft."""
    missing_share: Share = 0.15
    """Share of an aircraft's scattering centres that do not answer."""

    @model_validator(mode="after")
    def _classes_hold(self) -> "Aircraft":
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be at least one name, each once, got {list(self.classes)}")
        return self


class Radar(Schema):
    """The sensor, which looks to the right of the picture."""

    bits: Literal[8, 16] = 8
    """Amplitudes as uint8, where strong echoes saturate, or as uint16, where they do not."""
    looks: Annotated[int, Field(ge=1, le=16)] = 2
    """Independent looks averaged in intensity: more looks, less speckle."""
    incidence_deg: Annotated[float, Field(ge=15.0, le=65.0)] = 38.0
    """Angle between the line of sight and the vertical: what is steep lies over, what is flat casts shadow."""
    resolution_px: Annotated[float, Field(ge=1.0, le=3.0)] = 1.5
    """Width of a point's echo, pixels."""


class SarScenes(SceneLayout):
    """Wide-swath GeoTIFF scenes of the same world, one band."""

    aircraft_per_km2: PositiveFloat = 4.0
    """Aircraft by area of the whole scene."""


class SarAircraft(Schema):
    """A synthetic data set of aircraft in SAR amplitude images."""

    modality: Literal["sar_aircraft"]
    seed: Count = 7
    tile_px: Annotated[int, Field(ge=64)] = 256
    gsd_m: Annotated[float, Field(ge=0.5, le=5.0)] = 1.0
    """Ground sample distance in range and azimuth, metres."""
    images: SarImages = SarImages()
    aircraft: Aircraft = Aircraft()
    radar: Radar = Radar()
    scenes: SarScenes = SarScenes()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the category ids."""
        return self.aircraft.classes

    @property
    def per_tile(self) -> float:
        """Objects that a tile is meant to show."""
        return self.aircraft.per_tile

    @property
    def anywhere_share(self) -> float:
        """Share of tiles cut anywhere."""
        return self.images.without_aircraft

    @property
    def per_km2(self) -> float:
        """Objects by area of a scene."""
        return self.scenes.aircraft_per_km2

    @property
    def pixel(self) -> tuple[str, int]:
        """Type and number of bands."""
        return f"uint{self.radar.bits}", 1

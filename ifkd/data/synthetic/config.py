"""What a synthetic data set is made of; configs/demo_data.toml is a complete, commented one."""

from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ifkd.core.config import Schema

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
ShipClass = Literal["aircraft_carrier", "destroyer", "frigate", "container_ship", "oil_tanker", "bulk_carrier", "ferry"]
SHIP_CLASSES: tuple[ShipClass, ...] = get_args(ShipClass)
SPLITS = ("train", "validation", "test")


class Images(Schema):
    """How many tiles each split holds. Splits never share a place."""

    train: Count = 480
    validation: Count = 60
    test: Count = 120
    per_place: PositiveInt = 5
    """Tiles cut, without overlap, from one imaginary place of 4x4 tiles."""
    without_ships: Share = 0.06
    """Share of tiles cut anywhere in their place; most show no ship."""


class Ships(Schema):
    """Which ships sail, how many, and how hard they are to tell apart."""

    classes: tuple[ShipClass, ...] = SHIP_CLASSES
    """In the order of the category ids, which start at 1."""
    weights: dict[ShipClass, PositiveFloat] = {}
    """Relative frequency of a class; 1 for those not named."""
    per_tile: PositiveFloat = 9.0
    """Ships that a tile is meant to show, on average."""
    moored_share: Share = 0.5
    """Share of ships that lie in harbours, where there are harbours; the others are at sea."""
    under_way_share: Share = 0.5
    """Share of ships at sea that leave a wake."""
    similarity: Share = 0.05
    """0: classes keep their own size and paint; 1: sizes and paints of look-alikes are mixed."""

    @model_validator(mode="after")
    def _classes_hold(self) -> "Ships":
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be at least one name, each once, got {list(self.classes)}")
        foreign = sorted(set(self.weights) - set(self.classes))
        if foreign:
            raise ValueError(f"weights names {foreign}, which classes does not")
        return self


class Conditions(Schema):
    """Weather, water and sensor."""

    cloud_share: Share = 0.08
    """Share of places that lie partly under clouds."""
    haze_share: Share = 0.1
    """Share of places seen through thin haze."""
    glint: Share = 0.5
    """Strength of the sun's reflection on the sea."""
    waves: Share = 0.5
    """Strength of swell, chop and wind streaks."""
    land_share: Share = 0.35
    """Typical share of land."""
    small_boats: Share = 0.5
    """Abundance of boats too small to be labelled."""
    blur_px: Annotated[float, Field(ge=0.0, le=2.0)] = 0.55
    """Standard deviation of the sensor's point spread."""
    noise_dn: Annotated[float, Field(ge=0.0, le=30.0)] = 2.0
    """Standard deviation of the sensor's noise in grey levels of 0 to 255."""


class SceneLayout(Schema):
    """How wide-swath GeoTIFF scenes lie on the map and on disk."""

    count: Count = 1
    size_px: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] = (4096, 4096)
    """Height and width."""
    crs: str = "EPSG:32633"
    """A projected coordinate reference system in metres."""
    origin: tuple[float, float] = (392000.0, 5060000.0)
    """Easting and northing of the first scene's north-western corner; the next ones lie east of it."""
    block_px: Annotated[int, Field(ge=16, multiple_of=16)] = 512
    """Side of the blocks in which a scene is made and stored; its pixels do not depend on it."""


class Scenes(SceneLayout):
    """Wide-swath GeoTIFF scenes of the same world."""

    ships_per_km2: PositiveFloat = 4.0
    """Ships by area of the whole scene, land included."""


class Synthetic(Schema):
    """A synthetic data set."""

    seed: Count = 7
    tile_px: Annotated[int, Field(ge=64)] = 256
    gsd_m: Annotated[float, Field(ge=0.5, le=5.0)] = 2.0
    """Ground sample distance, metres; tiles and scenes share it."""
    images: Images = Images()
    ships: Ships = Ships()
    conditions: Conditions = Conditions()
    scenes: Scenes = Scenes()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the category ids."""
        return self.ships.classes

    @property
    def per_tile(self) -> float:
        """Objects that a tile is meant to show."""
        return self.ships.per_tile

    @property
    def anywhere_share(self) -> float:
        """Share of tiles cut anywhere."""
        return self.images.without_ships

    @property
    def per_km2(self) -> float:
        """Objects by area of a scene."""
        return self.scenes.ships_per_km2

    @property
    def pixel(self) -> tuple[str, int]:
        """Type and number of bands."""
        return "uint8", 3

"""The conditions under which one place is seen: sun, wind, water, vegetation, haze, clouds."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import Conditions
from ifkd.data.synthetic.drawing import Sun

_WATERS = (
    # deep and shallow colour
    ((26, 52, 66), (58, 108, 108)),
    ((22, 44, 70), (46, 116, 128)),
    ((30, 62, 58), (84, 116, 94)),
    ((44, 66, 62), (104, 116, 90)),
    ((20, 38, 54), (52, 92, 96)),
    ((62, 80, 76), (122, 126, 104)),
)
_VEGETATIONS = (
    # trees, grass, bare soil
    ((44, 60, 38), (92, 104, 62), (150, 132, 100)),
    ((38, 52, 34), (84, 100, 60), (142, 122, 92)),
    ((62, 68, 46), (126, 120, 82), (172, 152, 118)),
    ((50, 64, 44), (108, 112, 72), (160, 144, 112)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Weather:
    """The look of one place; colours are float32 [3], 0 to 255."""

    sun: Sun
    wind: float
    """Direction the wind blows to, radians from the x axis towards the y axis."""
    deep: Array
    shallow: Array
    trees: Array
    grass: Array
    soil: Array
    waves: float
    """Strength of the sea's texture, about 1."""
    glint: float
    """Strength of the sun's reflection, 0 to about 1."""
    cloud_level: float
    """Clouds stand where the cloud field is above this; the field is about normal."""
    haze: float
    """Share of the light that is haze, before clouds."""
    gain: Array
    """Exposure and white balance of the image, float32 [3]."""
    land_level: float
    """Land is where the terrain field is above this; the field is about normal."""


def make_weather(conditions: Conditions, rng: np.random.Generator, *, wide: bool) -> Weather:
    """Return conditions of one place; a `wide` place has its clouds and land as shares of its own area."""
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(38, 68))
    reach = 1 / math.tan(elevation)
    deep, shallow = (np.array(colour) for colour in _WATERS[rng.integers(len(_WATERS))])
    trees, grass, soil = (np.array(colour) for colour in _VEGETATIONS[rng.integers(len(_VEGETATIONS))])
    tint = rng.normal(0.0, 4.0, 3)
    cloudy = rng.random() < conditions.cloud_share
    level = rng.uniform(0.7, 1.7) if cloudy else math.inf
    if wide and conditions.cloud_share > 0:
        # A wide scene is neither cloudy nor clear: it has the share of clouds that its tiles would have.
        level = 2.4 - 1.6 * conditions.cloud_share
    hazy = rng.random() < conditions.haze_share
    land = _normal_quantile(1.0 - conditions.land_share)
    return Weather(
        sun=Sun(math.cos(azimuth) * reach, math.sin(azimuth) * reach),
        wind=rng.uniform(0, 2 * math.pi),
        deep=(deep + tint).astype(np.float32),
        shallow=(shallow + tint).astype(np.float32),
        trees=trees.astype(np.float32),
        grass=grass.astype(np.float32),
        soil=soil.astype(np.float32),
        waves=2 * conditions.waves * rng.uniform(0.5, 1.5),
        glint=2 * conditions.glint * max(0.0, rng.uniform(-0.5, 0.8)),
        cloud_level=level,
        haze=rng.uniform(0.08, 0.30) if hazy and not wide else rng.uniform(0.0, 0.05),
        gain=(rng.uniform(0.9, 1.16) + rng.normal(0.0, 0.02, 3)).astype(np.float32),
        land_level=land + (0.0 if wide else rng.uniform(-0.5, 0.7)),
    )


def _normal_quantile(share: float) -> float:
    """Return the value below which `share` of a standard normal lies (a logistic approximation)."""
    bounded = min(max(share, 0.002), 0.998)
    return math.log(bounded / (1 - bounded)) / 1.702

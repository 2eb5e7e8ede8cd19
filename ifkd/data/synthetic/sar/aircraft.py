"""Aircraft seen by a radar: scattering centers in three dimensions, bright in the directions they face."""

import math
from dataclasses import dataclass

import numpy as np
import shapely

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import AircraftClass, AircraftDatasetConfig
from ifkd.data.synthetic.geometry import Frame, Point
from ifkd.data.synthetic.labels import PlacedObject

SPACING_M = 1.8
Position = tuple[float, float, float]  # u ahead, v to the right, height
BRIGHTNESS = 1.5


@dataclass(frozen=True, slots=True)
class AircraftType:
    """The shape of a type, meters and degrees; rounded from what its maker publishes."""

    length: float
    span: float
    height: float
    fuselage: float
    """Diameter."""
    sweep: float
    wing_at: float
    """Distance of the wing's root from the nose."""
    engine: Point
    """Distances of the inlets from the nose and from the axis."""
    tail_span: float
    t_tail: bool = False


TYPES: dict[AircraftClass, AircraftType] = {
    "a220": AircraftType(38.7, 35.1, 11.5, 3.7, 27.0, 13.2, (13.2, 5.9), 12.2),
    "a320": AircraftType(37.6, 35.8, 11.8, 4.0, 27.5, 11.7, (11.8, 5.8), 12.5),
    "a330": AircraftType(63.7, 60.3, 16.8, 5.6, 32.0, 20.4, (20.5, 9.4), 19.4),
    "arj21": AircraftType(33.5, 27.3, 8.4, 3.3, 27.0, 14.1, (23.4, 2.9), 9.6, t_tail=True),
    "boeing737": AircraftType(39.5, 35.8, 12.5, 3.8, 28.0, 13.0, (13.0, 4.8), 14.4),
    "boeing787": AircraftType(62.8, 60.1, 17.0, 5.8, 35.0, 21.4, (21.0, 9.9), 19.8),
}


def scattering_centers(shape: AircraftType) -> Array:
    """Return the scattering centers of a type, float64 [n, 6].

    Columns: u ahead of the middle, v to the right, height above ground; amplitude, where that of grass is 1; the
    direction of greatest brightness, radians from ahead toward the right; and the width of that peak, radians.
    """
    nose, body, half, sweep = shape.length / 2, shape.fuselage / 2, shape.span / 2, math.radians(shape.sweep)
    root, chord, top, level = nose - shape.wing_at, 0.18 * shape.span, 1.1 * body + 1.0, 0.7 * body + 1.2
    tip, rise = root - (half - body) * math.tan(sweep), level + 0.08 * half
    plane, inlet = (shape.height - 0.6, top) if shape.t_tail else (1.6 * body + 1.0, 1.8)
    ahead, behind, fin = nose - shape.engine[0], nose - shape.engine[0] - 0.11 * shape.length, 0.7 * shape.height
    lines = [
        _line((nose - 1.0, 0.0, top), (7.0 - nose, 0.0, top), 1.4),
        _line((nose - 3.5, 0.0, top), (nose - 3.5, 0.0, top), 7.0, 0.0, 1.0),  # cockpit
        _line((4.0 - nose, 0.0, fin), (1.5 - nose, 0.0, shape.height - 1.0), 2.5),
    ]
    for side in (-1, 1):
        right, v, out = side * math.pi / 2, side * body, side * shape.engine[1]
        wing, outer, flap = (root, v, level), (tip, side * half, rise), (root - chord, v, level)
        tail, end = (4.6 - nose, 1.5 * side, plane), (1.2 - nose, side * shape.tail_span / 2, plane)
        lines += [
            _line((nose - 4.0, v, 0.5), (7.0 - nose, v, 0.5), 10.0, right, 0.25),  # the corner of belly and ground
            _line(wing, outer, 6.0, side * sweep, 0.16),
            _line(wing, outer, 0.9),
            _line(flap, (tip - 0.22 * chord, side * half, rise), 4.0, math.pi - side * sweep / 2, 0.2),
            _line(flap, flap, 11.0, right / 1.2, 0.8),
            _line(outer, outer, 4.0),
            _line((ahead, out, inlet), (ahead, out, inlet), 20.0, 0.0, 0.75),
            _line((behind, out, inlet), (behind, out, inlet), 11.0, math.pi, 0.6),
            _line((4.0 - nose, 0.0, fin), (4.0 - nose, 0.0, fin), 9.0, right, 0.35),
            _line(tail, end, 3.5, side * 0.55, 0.2),
            _line(tail, tail, 7.0, math.pi - side * 0.9, 0.9),
        ]
    return np.concatenate(lines)


def _line(start: Position, end: Position, amplitude: float, facing: float = 0.0, width: float = math.inf) -> Array:
    """Return the scattering centers along a line, or at a point."""
    count = 1 + math.ceil(math.dist(start, end) / SPACING_M)
    return np.hstack([np.linspace(start, end, count), np.tile((amplitude, facing, width), (count, 1))])


@dataclass(frozen=True, slots=True, eq=False)
class ParkedAircraft(PlacedObject):
    """One aircraft; its outline is the convex hull of its echoes, laid over toward the sensor."""

    category: AircraftClass
    positions: Array
    """float64 [n, 2], x, y of its echoes, world meters."""
    echoes: Array
    """complex64 [n]."""


def park(
    category: AircraftClass, frame: Frame, rng: np.random.Generator, config: AircraftDatasetConfig
) -> ParkedAircraft:
    """Return an aircraft at a frame, laid over toward a sensor far to the left: height / tan(incidence)."""
    u, v, height, amplitudes, facing, width = scattering_centers(TYPES[category]).T
    layover = height / math.tan(math.radians(config.radar.incidence_deg))
    positions = frame.to_world(np.stack([u, v], axis=1)) - np.stack([layover, 0.0 * height], axis=1)
    toward_sensor = math.atan2(math.sin(frame.angle), -math.cos(frame.angle))
    aside = np.angle(np.exp(1j * (toward_sensor - facing)))
    amplitudes = BRIGHTNESS * amplitudes * np.exp(-((aside / width) ** 2))
    amplitudes *= 10.0 ** (rng.normal(0.0, config.aircraft.fluctuation_db, len(u)) / 20.0)
    amplitudes *= rng.random(len(u)) >= config.aircraft.missing_fraction
    echoes = (amplitudes * np.exp(1j * rng.uniform(0.0, 2 * math.pi, len(u)))).astype(np.complex64)
    outline = shapely.get_coordinates(shapely.MultiPoint(positions).convex_hull)[:-1]
    return ParkedAircraft(category, frame, outline, positions, echoes)

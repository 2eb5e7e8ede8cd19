"""Aircraft as a radar sees them: scattering centres in three dimensions, bright from where they face the sensor."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.drawing import Frame
from ifkd.data.synthetic.sar.config import AircraftClass

SPACING_M = 1.8
"""Distance of centres along fuselage and edges."""
BRIGHTNESS = 1.5
"""Of all centres, against the amplitudes below."""


@dataclass(frozen=True, slots=True)
class AircraftType:
    """The shape of a type, metres and degrees; rounded from what its maker publishes."""

    length: float
    span: float
    height: float
    """Top of the fin."""
    fuselage: float
    """Diameter."""
    sweep: float
    """Of the leading edge, degrees."""
    root_chord: float
    wing_at: float
    """Where the leading edge leaves the fuselage, from the nose, as a share of the length."""
    engine: tuple[float, float]
    """Inlets, from the nose and from the axis."""
    nacelle: float
    """Length of an engine."""
    tail_span: float
    t_tail: bool = False
    """Whether the tailplane sits on top of the fin."""


TYPES: dict[AircraftClass, AircraftType] = {
    "a220": AircraftType(38.7, 35.1, 11.5, 3.7, 27.0, 6.3, 0.34, (13.2, 5.9), 4.6, 12.2),
    "a320": AircraftType(37.6, 35.8, 11.8, 4.0, 27.5, 6.8, 0.31, (11.8, 5.8), 4.4, 12.5),
    "a330": AircraftType(63.7, 60.3, 16.8, 5.6, 32.0, 11.5, 0.32, (20.5, 9.4), 6.6, 19.4),
    "arj21": AircraftType(33.5, 27.3, 8.4, 3.3, 27.0, 5.6, 0.42, (23.4, 2.9), 4.3, 9.6, t_tail=True),
    "boeing737": AircraftType(39.5, 35.8, 12.5, 3.8, 28.0, 7.0, 0.33, (13.0, 4.8), 4.4, 14.4),
    "boeing787": AircraftType(62.8, 60.1, 17.0, 5.8, 35.0, 11.0, 0.34, (21.0, 9.9), 6.8, 19.8),
}


@dataclass(frozen=True, slots=True)
class Centre:
    """A scattering centre in the aircraft's frame: u ahead of its middle, v to the right, height above ground."""

    u: float
    v: float
    height: float
    amplitude: float
    """Against grass, whose amplitude is 1."""
    facing: float = 0.0
    """From where it is brightest: radians from ahead, towards the right."""
    width: float = math.inf
    """By how much the sensor may be aside of that, radians; infinite for one that is bright from everywhere."""

    def seen_from(self, direction: float) -> float:
        """Return the amplitude for a sensor in a direction, radians from ahead towards the right."""
        aside = math.remainder(direction - self.facing, 2 * math.pi)
        return self.amplitude * math.exp(-((aside / self.width) ** 2))


def centres_of(shape: AircraftType) -> list[Centre]:
    """Return the scattering centres of a type."""
    return [*_body(shape), *_wings(shape), *_engines(shape), *_tail(shape)]


def _body(shape: AircraftType) -> Iterator[Centre]:
    nose, middle = shape.length / 2, 0.55 * shape.fuselage + 1.0
    yield Centre(nose - 1.0, 0.0, middle, 3.0)
    yield Centre(nose - 3.5, 0.0, middle + 1.0, 7.0, 0.0, 1.0)
    yield Centre(nose - 5.0, 0.0, 0.4, 4.0)  # nose gear
    for along in np.arange(4.0, shape.length - 7.0, SPACING_M):
        for side in (-1, 1):  # the belly and the ground are a corner
            yield Centre(nose - along, side * shape.fuselage / 2, 0.5, 10.0, side * math.pi / 2, 0.25)
        yield Centre(nose - along, 0.0, middle, 1.3)


def _wings(shape: AircraftType) -> Iterator[Centre]:
    sweep, half = math.radians(shape.sweep), shape.span / 2
    root = shape.length / 2 - shape.wing_at * shape.length
    level = 0.35 * shape.fuselage + 1.2
    for side in (-1, 1):
        yield Centre(root - shape.root_chord / 2, side * shape.fuselage / 2, level, 11.0, side * math.pi / 2.4, 0.8)
        yield Centre(root - shape.root_chord, side * shape.fuselage * 0.7, 0.4, 7.0)  # main gear
        for out in np.arange(shape.fuselage / 2 + 1.0, half, SPACING_M):
            rise = level + 0.08 * out
            leading = root - (out - shape.fuselage / 2) * math.tan(sweep)
            chord = shape.root_chord * (1 - 0.78 * out / half)
            yield Centre(leading, side * out, rise, 6.0, side * sweep, 0.16)
            yield Centre(leading, side * out, rise, 0.9)
            yield Centre(leading - chord, side * out, rise, 4.0, math.pi - side * sweep * 0.5, 0.2)
        tip = root - (half - shape.fuselage / 2) * math.tan(sweep)
        yield Centre(tip - 1.0, side * half, level + 0.08 * half, 4.0)


def _engines(shape: AircraftType) -> Iterator[Centre]:
    ahead, out = shape.length / 2 - shape.engine[0], shape.engine[1]
    level = 0.75 * shape.fuselage + 1.0 if shape.t_tail else 1.8
    for side in (-1, 1):
        yield Centre(ahead, side * out, level, 20.0, 0.0, 0.75)
        yield Centre(ahead - shape.nacelle, side * out, level, 11.0, math.pi, 0.6)
        yield Centre(ahead - shape.nacelle / 2, side * out, level, 7.0, side * math.pi / 2, 0.5)
        yield Centre(ahead - shape.nacelle / 2, side * out, level, 2.0)


def _tail(shape: AircraftType) -> Iterator[Centre]:
    end = -shape.length / 2
    plane = shape.height - 0.6 if shape.t_tail else 0.8 * shape.fuselage + 1.0
    fin = shape.height - 0.3 * (shape.height - shape.fuselage)
    yield Centre(end + 3.5, 0.0, fin, 3.0)
    yield Centre(end + 1.5, 0.0, shape.height - 1.0, 2.5)
    for side in (-1, 1):
        yield Centre(end + 4.0, 0.0, fin, 9.0, side * math.pi / 2, 0.35)
        yield Centre(end + 4.5, side * 0.8, plane, 7.0, math.pi - side * 0.9, 0.9)
        yield Centre(end + 1.2, side * shape.tail_span / 2, plane, 2.2)
        for out in np.arange(1.5, shape.tail_span / 2, SPACING_M):
            yield Centre(end + 5.5 - 0.6 * out, side * out, plane, 3.5, side * 0.55, 0.2)


@dataclass(frozen=True, slots=True, eq=False)
class ParkedAircraft:
    """One aircraft at its place; u of its frame is where its nose points."""

    kind: AircraftClass
    frame: Frame
    places: Array
    """float64 [n, 2]: x, y of its echoes in world metres, laid over towards the sensor."""
    echoes: Array
    """complex64 [n]: their amplitude and phase."""
    outline: Array
    """float64 [m, 2]: the convex hull of what can echo, world metres."""
    shadow: Array
    """float64 [k, 2]: where the wing and the body keep the radar from the ground, world metres."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of the outline, world metres."""
        (x1, y1), (x2, y2) = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)


def park(
    kind: AircraftClass,
    frame: Frame,
    rng: np.random.Generator,
    *,
    incidence_deg: float,
    fluctuation_db: float,
    missing_share: float,
) -> ParkedAircraft:
    """Return an aircraft whose middle and nose are those of `frame`, seen by a sensor far to the left.

    What is high lies over towards the sensor by its height over the tangent of the incidence angle.
    """
    shape = TYPES[kind]
    centres = centres_of(shape)
    slope = math.tan(math.radians(incidence_deg))
    spots = np.array([(centre.u, centre.v, centre.height) for centre in centres])
    places = frame.to_world(spots[:, :2])
    places[:, 0] -= spots[:, 2] / slope
    towards_sensor = math.atan2(math.sin(frame.angle), -math.cos(frame.angle))
    amplitudes = np.array([centre.seen_from(towards_sensor) for centre in centres])
    amplitudes *= BRIGHTNESS * 10.0 ** (rng.normal(0.0, fluctuation_db, len(centres)) / 20.0)
    amplitudes *= rng.random(len(centres)) >= missing_share
    phases = np.exp(1j * rng.uniform(0.0, 2 * math.pi, len(centres)))
    ground = frame.to_world(_planform(shape))
    return ParkedAircraft(
        kind=kind,
        frame=frame,
        places=places,
        echoes=(amplitudes * phases).astype(np.complex64),
        outline=convex_hull(places),
        shadow=ground + np.array([(0.35 * shape.fuselage + 1.2) * slope, 0.0]),
    )


def convex_hull(points: Array) -> Array:
    """Return the convex hull of points [n, 2], by Andrew's monotone chain."""
    ordered = sorted(map(tuple, points.tolist()))
    halves = []
    for run in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for point in run:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        halves.append(chain[:-1])
    return np.array([*halves[0], *halves[1]])


def _turn(one: tuple[float, float], two: tuple[float, float], three: tuple[float, float]) -> float:
    return (two[0] - one[0]) * (three[1] - one[1]) - (two[1] - one[1]) * (three[0] - one[0])


def _planform(shape: AircraftType) -> Array:
    """Return the outline seen from above, float64 [n, 2], u and v."""
    nose, half, body = shape.length / 2, shape.span / 2, shape.fuselage / 2
    root = nose - shape.wing_at * shape.length
    tip = root - (half - body) * math.tan(math.radians(shape.sweep))
    end = -shape.length / 2
    right = [
        (nose, 0.0),
        (nose - 3.0, body),
        (root, body),
        (tip, half),
        (tip - 0.22 * shape.root_chord, half),
        (root - shape.root_chord, body),
        (end + 6.0, body),
        (end + 1.5, shape.tail_span / 2),
        (end, 0.0),
    ]
    return np.array([*right, *[(u, -v) for u, v in right[-2:0:-1]]])

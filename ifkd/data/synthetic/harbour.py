"""Harbours: quays, piers and jetties with their berths, and what stands on the ground behind them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from ifkd.data.synthetic.drawing import Colour, Frame, Sketch, shaded, varied
from ifkd.data.synthetic.terrain import APRON_M, Basin

HarbourKind = Literal["naval", "container", "oil", "bulk", "ferry", "general"]
HARBOUR_KINDS: tuple[HarbourKind, ...] = get_args(HarbourKind)

CONCRETE: Colour = (172, 167, 156)
ROOFS: tuple[Colour, ...] = (
    (188, 188, 184), (206, 206, 202), (124, 128, 132), (150, 84, 64), (96, 110, 128), (168, 152, 128), (84, 92, 92),
)  # fmt: skip
BOXES: tuple[Colour, ...] = (
    (148, 56, 46),
    (52, 84, 134),
    (62, 112, 92),
    (186, 186, 180),
    (190, 124, 52),
    (110, 72, 58),
)
CARS: tuple[Colour, ...] = ((210, 210, 208), (60, 62, 66), (128, 130, 134), (150, 50, 46), (56, 76, 116))


@dataclass(frozen=True, slots=True)
class Berth:
    """A straight edge ships lie along: u runs along it from 0, v points to the water."""

    frame: Frame
    length_m: float


@dataclass(slots=True, eq=False)
class Harbour:
    """A harbour with its drawings."""

    kind: HarbourKind
    basin: Basin
    berths: list[Berth] = field(default_factory=list)
    below: list[Sketch] = field(default_factory=list)
    """Drawn before the ships."""
    above: list[Sketch] = field(default_factory=list)
    """Drawn after the ships: gantries that reach over them."""

    def frame_at(self, u: float, v: float, turn: float = 0.0) -> Frame:
        """Return a frame at local (u, v), turned clockwise by `turn` radians against the harbour's."""
        x, y = self.basin.frame.to_world(np.array([[u, v]]))[0]
        return Frame(float(x), float(y), self.basin.frame.angle + turn)


def make_harbour(kind: HarbourKind, basin: Basin, rng: np.random.Generator) -> Harbour:
    """Return a harbour on a basin."""
    harbour = Harbour(kind, basin)
    _BUILDERS[kind](harbour, rng)
    return harbour


def _naval(harbour: Harbour, rng: np.random.Generator) -> None:
    _piers(harbour, rng, width=(13.0, 24.0), length=(150.0, 250.0), spacing=(105.0, 150.0))
    _sheds(harbour, rng, (-APRON_M + 24.0, -34.0), share=0.7)
    _parking(harbour, rng)


def _general(harbour: Harbour, rng: np.random.Generator) -> None:
    _piers(harbour, rng, width=(26.0, 46.0), length=(140.0, 230.0), spacing=(140.0, 200.0), sheds=True)
    _sheds(harbour, rng, (-APRON_M + 24.0, -30.0), share=0.75)


def _container(harbour: Harbour, rng: np.random.Generator) -> None:
    half = harbour.basin.half_length_m
    harbour.berths.append(Berth(harbour.frame_at(-half + 12, 0.0), 2 * half - 24))
    for u in np.arange(-half + 30, half - 74, 72.0):
        if rng.random() < 0.9:
            _container_block(harbour, rng, float(u), -60.0)
        if rng.random() < 0.8:
            _container_block(harbour, rng, float(u), -102.0)
    colour = varied(rng, [(70, 100, 150), (176, 74, 56), (200, 200, 196)][rng.integers(3)])
    for u in np.arange(-half + 40, half - 40, rng.uniform(74, 112)):
        if rng.random() < 0.8:
            _gantry(harbour, float(u + rng.uniform(-10, 10)), colour)
    _sheds(harbour, rng, (-APRON_M + 18.0, -APRON_M + 40.0), share=0.4)


def _container_block(harbour: Harbour, rng: np.random.Generator, u: float, v: float) -> None:
    sketch = Sketch(harbour.frame_at(u, v))
    for row in range(4):
        for slot in range(5):
            if rng.random() < 0.8:
                colour = varied(rng, BOXES[rng.integers(len(BOXES))])
                place = (slot * 12.8, slot * 12.8 + 12.2), (row * 8.0, row * 8.0 + 2.4 * rng.integers(1, 4))
                sketch.box(*place, colour, 2.6 * rng.integers(1, 4))
    if sketch.parts:
        harbour.below.append(sketch)


def _gantry(harbour: Harbour, u: float, colour: Colour) -> None:
    # A boom over the ship takes a part of it, as it does in real pictures; most of them are raised.
    sketch = Sketch(harbour.frame_at(u, 0.0))
    raised = round(u) % 10 < 7
    for side in (-7.0, 7.0):
        sketch.line((side, -28.0), (side, -2.0), 1.6, shaded(colour, 0.9), 8.0)
    sketch.line((-7.0, -3.0), (7.0, -3.0), 2.0, colour, 16.0)
    sketch.line((-7.0, -27.0), (7.0, -27.0), 2.0, colour, 10.0)
    sketch.line((-1.6, -36.0), (-1.6, 4.0 if raised else 34.0), 1.3, colour, 18.0)
    sketch.line((1.6, -36.0), (1.6, 4.0 if raised else 34.0), 1.3, colour, 18.0)
    sketch.box((-3.0, 3.0), (-34.0, -26.0), shaded(colour, 1.1), 6.0)
    harbour.above.append(sketch)


def _oil(harbour: Harbour, rng: np.random.Generator) -> None:
    half = harbour.basin.half_length_m
    count = max(1, int(2 * half // 230))
    for u in (np.arange(count) - (count - 1) / 2) * (2 * half / count):
        out = rng.uniform(80.0, 170.0)
        sketch = Sketch(harbour.frame_at(float(u), 0.0))
        grey = varied(rng, (150, 148, 142))
        sketch.line((0.0, -4.0), (0.0, out), 6.0, grey, 4.0)
        sketch.line((1.6, -4.0), (1.6, out), 1.4, varied(rng, (190, 182, 150)))
        arm = min(112.0, 0.92 * (half - 10) / count)
        sketch.box((-22.0, 22.0), (out - 7, out + 9), varied(rng, CONCRETE), 4.0)
        for side in (-1.0, 1.0):
            sketch.line((side * 22.0, out + 2), (side * arm, out + 2), 2.6, grey, 3.0)
            for reach in (0.55, 1.0):
                sketch.box(
                    (side * arm * reach - 5, side * arm * reach + 5), (out - 4, out + 6), varied(rng, CONCRETE), 4.0
                )
        sketch.line((-6.0, out + 5), (-6.0, out + 9), 1.6, (200, 90, 60), 8.0)
        sketch.line((6.0, out + 5), (6.0, out + 9), 1.6, (200, 90, 60), 8.0)
        harbour.below.append(sketch)
        harbour.berths.append(Berth(harbour.frame_at(float(u) - arm, out + 9.0), 2 * arm))
    _tanks(harbour, rng)


def _tanks(harbour: Harbour, rng: np.random.Generator) -> None:
    half = harbour.basin.half_length_m
    radius = rng.uniform(12.0, 21.0)
    for v in (-46.0, -104.0):
        for u in np.arange(-half + 34, half - 24, radius * 2 + rng.uniform(12, 22)):
            if rng.random() < 0.18:
                continue
            r = radius * rng.uniform(0.72, 1.0)
            sketch = Sketch(harbour.frame_at(float(u), v))
            roof = varied(rng, (214, 212, 204) if rng.random() < 0.8 else (150, 140, 122))
            sketch.disc((0.0, 0.0), r + 5, (128, 118, 102))
            sketch.disc((0.0, 0.0), r, shaded(roof, 0.8), 13.0)
            sketch.disc((0.0, 0.0), r - 1.2, roof)
            sketch.disc((0.0, 0.0), r * 0.18, shaded(roof, 0.9))
            harbour.below.append(sketch)


def _bulk(harbour: Harbour, rng: np.random.Generator) -> None:
    _piers(harbour, rng, width=(18.0, 26.0), length=(170.0, 240.0), spacing=(170.0, 240.0), conveyor=True)
    half = harbour.basin.half_length_m
    ore = [(58, 54, 52), (132, 84, 62), (176, 160, 128)][rng.integers(3)]
    for v in (-52.0, -92.0):
        u = -half + 24
        while u < half - 60:
            length = rng.uniform(40, 110)
            sketch = Sketch(harbour.frame_at(u, v))
            dark = varied(rng, ore)
            for shrink, light, rise in ((0.0, 0.86, 5.0), (4.0, 1.0, 4.0), (8.0, 1.16, 3.0)):
                end = min(length, half - 20 - u)
                corners = [(shrink, 0.0), (shrink + 6, -13 + shrink), (end - 6 - shrink, -13 + shrink)]
                corners += [(end - shrink, 0.0), (end - 6 - shrink, 13 - shrink), (shrink + 6, 13 - shrink)]
                sketch.area(corners, shaded(dark, light), rise)
            harbour.below.append(sketch)
            u += length + rng.uniform(10, 24)


def _ferry(harbour: Harbour, rng: np.random.Generator) -> None:
    _piers(harbour, rng, width=(8.0, 16.0), length=(80.0, 140.0), spacing=(80.0, 115.0))
    _parking(harbour, rng)
    _sheds(harbour, rng, (-64.0, -30.0), share=0.55)
    half = harbour.basin.half_length_m
    for u in np.arange(-half + 10, -half + 70, 16.0):  # a marina in the corner
        sketch = Sketch(harbour.frame_at(float(u), 0.0))
        length = rng.uniform(36, 56)
        sketch.line((0.0, 0.0), (0.0, length), 2.0, (176, 170, 158), 1.0)
        for v in np.arange(8.0, length, 4.6):
            for side in (-1.0, 1.0):
                if rng.random() < 0.75:
                    reach = rng.uniform(5.0, 6.6)
                    colour = varied(rng, (222, 224, 222) if rng.random() < 0.8 else (70, 92, 128))
                    sketch.line((side * 1.2, v), (side * (1.2 + reach), v), 2.2, colour, 1.5)
        harbour.below.append(sketch)


def _piers(
    harbour: Harbour,
    rng: np.random.Generator,
    *,
    width: tuple[float, float],
    length: tuple[float, float],
    spacing: tuple[float, float],
    sheds: bool = False,
    conveyor: bool = False,
) -> None:
    """Build piers into the basin, with a berth on each side and along the quay between them."""
    half = harbour.basin.half_length_m
    step, broad, out = rng.uniform(*spacing), rng.uniform(*width), rng.uniform(*length)
    count = max(1, int((2 * half - 60) // step))
    first = -(count - 1) * step / 2
    colour = varied(rng, CONCRETE, 12.0)
    for index in range(count):
        u, reach = first + index * step, min(out * rng.uniform(0.85, 1.1), harbour.basin.reach_m - 20)
        harbour.below.append(_pier(harbour.frame_at(u, 0.0), broad, reach, colour, rng))
        if sheds:
            sketch = Sketch(harbour.frame_at(u, 0.0))
            sketch.box((-broad * 0.24, broad * 0.24), (24.0, reach - 22), varied(rng, ROOFS[rng.integers(7)]), 9.0)
            sketch.line((0.0, 24.0), (0.0, reach - 22), 1.0, shaded(colour, 0.8))
            harbour.below.append(sketch)
        if conveyor:
            sketch = Sketch(harbour.frame_at(u, 0.0))
            sketch.line((0.0, -60.0), (0.0, reach - 10), 3.0, varied(rng, (120, 126, 128)), 8.0)
            sketch.line((-broad * 0.45, reach * 0.6), (broad * 0.45, reach * 0.6), 4.0, (190, 150, 70), 14.0)
            harbour.below.append(sketch)
        harbour.berths.append(Berth(harbour.frame_at(u - broad / 2, 14.0, math.pi / 2), reach - 16))
        harbour.berths.append(Berth(harbour.frame_at(u + broad / 2, reach - 2, -math.pi / 2), reach - 16))


def _pier(frame: Frame, broad: float, reach: float, colour: Colour, rng: np.random.Generator) -> Sketch:
    sketch = Sketch(frame)
    sketch.box((-broad / 2, broad / 2), (-6.0, reach), shaded(colour, 0.82), 3.0)
    sketch.box((-broad / 2 + 1, broad / 2 - 1), (-6.0, reach - 1), colour)
    for v in np.arange(6.0, reach, 22.0):
        sketch.line((-broad / 2 + 1, float(v)), (broad / 2 - 1, float(v)), 0.7, shaded(colour, 0.93))
    sketch.line((0.0, 0.0), (0.0, reach - 8), 1.2, shaded(colour, 0.86))
    for _ in range(int(reach / 11)):
        u, v = rng.uniform(-broad / 2 + 2, broad / 2 - 4), rng.uniform(4, reach - 10)
        sketch.box((u, u + 2.2), (v, v + rng.uniform(3, 7)), CARS[rng.integers(len(CARS))], 2.0)
    if rng.random() < 0.6:  # a crane on rails
        v = rng.uniform(0.3, 0.9) * reach
        paint = varied(rng, (196, 150, 60))
        sketch.box((-2.5, 2.5), (v - 2.5, v + 2.5), paint, 10.0)
        sketch.line((0.0, v), (rng.uniform(-1, 1) * broad * 0.5, v + 18), 1.3, paint, 10.0)
    return sketch


def _sheds(harbour: Harbour, rng: np.random.Generator, across: tuple[float, float], *, share: float) -> None:
    """Put rows of halls with pitched roofs between two distances from the quay."""
    half = harbour.basin.half_length_m
    v = across[0]
    while v < across[1] - 14:
        depth = min(rng.uniform(18, 38), across[1] - v)
        u = -half + rng.uniform(4, 20)
        while u < half - 24:
            length = min(rng.uniform(24, 84), half - 6 - u)
            if rng.random() < share:
                sketch = Sketch(harbour.frame_at(u, v))
                roof = varied(rng, ROOFS[rng.integers(len(ROOFS))])
                height = rng.uniform(6, 12)
                sketch.box((0.0, length), (0.0, depth), roof, height)
                sketch.box((0.0, length), (0.0, depth / 2), shaded(roof, 1.1))
                for spot in np.arange(6.0, length - 4, rng.uniform(9, 24)):
                    sketch.box((spot, spot + 2.4), (depth * 0.22, depth * 0.36), shaded(roof, 0.7), 1.0)
                harbour.below.append(sketch)
            u += length + rng.uniform(8, 22)
        v += depth + rng.uniform(10, 16)


def _parking(harbour: Harbour, rng: np.random.Generator) -> None:
    half = harbour.basin.half_length_m
    length = rng.uniform(60, 130)
    sketch = Sketch(harbour.frame_at(rng.uniform(-half + 10, half - 10 - length), -27.0))
    sketch.box((0.0, length), (0.0, 20.0), varied(rng, (108, 108, 108)))
    for v in (2.0, 10.0, 14.0):
        for u in np.arange(2.0, length - 3, 3.2):
            if rng.random() < 0.7:
                sketch.box((u, u + 2.0), (v, v + 4.4), varied(rng, CARS[rng.integers(len(CARS))], 12.0), 1.4)
    harbour.below.append(sketch)


_BUILDERS: dict[HarbourKind, Callable[[Harbour, np.random.Generator], None]] = {
    "naval": _naval,
    "container": _container,
    "oil": _oil,
    "bulk": _bulk,
    "ferry": _ferry,
    "general": _general,
}

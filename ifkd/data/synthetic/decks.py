"""What stands on a ship's deck, class by class, drawn over its hull."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ifkd.data.synthetic.config import ShipClass
from ifkd.data.synthetic.drawing import Colour, Sketch, shaded, varied
from ifkd.data.synthetic.ships import DESIGNS, Ship, half_breadth, hull_points

WHITE: Colour = (226, 228, 224)
CREAM: Colour = (214, 206, 184)
DARK: Colour = (46, 48, 50)
ORANGE: Colour = (206, 98, 40)
CONTAINERS: tuple[Colour, ...] = (
    (148, 56, 46), (52, 84, 134), (62, 112, 92), (176, 176, 172), (190, 124, 52), (108, 66, 52),
    (82, 122, 162), (202, 196, 182), (64, 70, 78), (168, 74, 62),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Deck:
    """A ship being drawn: stations are shares of the length, 0 at the stern; breadths are shares of the half beam."""

    ship: Ship
    sketch: Sketch
    rng: np.random.Generator

    def u(self, station: float) -> float:
        return (station - 0.5) * self.ship.length_m

    def v(self, share: float) -> float:
        return share * self.ship.beam_m / 2

    def house(self, stations: tuple[float, float], half: float, colour: Colour, rise: float) -> None:
        """Put a block amidships, no wider than the hull lets it."""
        room = min(half_breadth(self.ship, station) for station in stations) - 0.8
        v = min(self.v(half), room)
        self.sketch.box((self.u(stations[0]), self.u(stations[1])), (-v, v), colour, rise)

    def block(self, stations: tuple[float, float], across: tuple[float, float], colour: Colour, rise: float) -> None:
        """Put a block anywhere; the caller keeps it aboard."""
        self.sketch.box(
            (self.u(stations[0]), self.u(stations[1])), (self.v(across[0]), self.v(across[1])), colour, rise
        )

    def disc(self, station: float, share: float, radius: float, colour: Colour, rise: float = 0.0) -> None:
        self.sketch.disc((self.u(station), self.v(share)), radius, colour, rise)

    def ring(self, station: float, radius: float, ink: Colour, ground: Colour) -> None:
        self.disc(station, 0.0, radius, ink)
        self.disc(station, 0.0, radius - 1.0, ground)

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour) -> None:
        self.sketch.line((self.u(start[0]), self.v(start[1])), (self.u(end[0]), self.v(end[1])), width, colour)


def ship_sketch(ship: Ship) -> Sketch:
    """Return the drawing of a ship; every part lies inside its silhouette."""
    sketch = Sketch(ship.frame)
    deck = _Deck(ship, sketch, np.random.default_rng(ship.seed))
    sketch.area(hull_points(ship), ship.hull, DESIGNS[ship.kind].freeboard_m)
    sketch.area(hull_points(ship, inset_m=max(0.9, ship.beam_m * 0.045)), ship.deck)
    _FITTINGS[ship.kind](deck)
    return sketch


def _carrier(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    paint = varied(rng, (206, 204, 190), 10.0)
    # Angled landing deck with its centre line, and the bow runway.
    deck.line((0.01, 0.22), (0.68, -0.64), 0.9, paint)
    deck.line((0.03, -0.42), (0.44, -0.92), 0.9, paint)
    deck.line((0.02, 0.52), (0.60, -0.28), 0.9, paint)
    deck.line((0.62, -0.06), (0.985, -0.06), 0.9, paint)
    deck.line((0.70, 0.34), (0.97, 0.30), 0.8, paint)
    for station in rng.choice([0.25, 0.36, 0.66, 0.76], 2, replace=False):
        deck.block((station, station + 0.055), (0.44, 0.62), shaded(ship.deck, 0.72), 0.0)
    grey = varied(rng, (140, 145, 148), 8.0)
    start = rng.uniform(0.40, 0.46)
    deck.block((start, start + rng.uniform(0.13, 0.17)), (0.62, 0.92), grey, 22.0)
    deck.block((start + 0.03, start + 0.09), (0.66, 0.86), shaded(grey, 1.2), 8.0)
    deck.disc(start + 0.10, 0.77, 2.2, (208, 208, 202), 10.0)
    rows = [(station, 0.38) for station in np.arange(0.06, 0.36, 0.05)]
    rows += [(station, 0.24) for station in np.arange(0.72, 0.92, 0.05)]
    rows += [(station, -0.24) for station in np.arange(0.78, 0.92, 0.05)]
    busy = rng.uniform(0.25, 0.85)
    for station, share in rows:
        if rng.random() < busy:
            _aircraft(deck, station, share, varied(rng, (164, 168, 170), 8.0))


def _aircraft(deck: _Deck, station: float, share: float, colour: Colour) -> None:
    u, v = deck.u(station), deck.v(share)
    lean = deck.rng.uniform(-0.5, 0.5)
    deck.sketch.line((u - 6, v - lean * 6), (u + 7, v + lean * 6), 2.4, colour, 2.0)
    deck.sketch.area(
        [(u + 2, v), (u - 4, v - 4.6), (u - 5, v - 4.6), (u - 3, v), (u - 5, v + 4.6), (u - 4, v + 4.6)], colour
    )


def _destroyer(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    grey = varied(rng, (158, 163, 165), 7.0)
    _helipad(deck, (0.02, 0.185), (0.105, 5.4), shaded(ship.deck, 0.68))
    deck.house((0.19, 0.31), 0.80, grey, 8.0)  # hangar
    if rng.random() < 0.7:
        deck.house((0.205, 0.255), 0.46, shaded(grey, 0.62), 0.0)  # launcher cells aft
    deck.house((0.33, 0.70), 0.74, shaded(grey, 0.94), 6.0)
    shift, width = rng.uniform(-0.012, 0.012), rng.uniform(0.28, 0.44)
    soot = varied(rng, DARK, 6.0)
    deck.house((0.36 + shift, 0.42 + shift), width, soot, 7.0)  # two funnels
    deck.house((0.49 + shift, 0.55 + shift), width, soot, 7.0)
    deck.house((rng.uniform(0.575, 0.60), 0.70), rng.uniform(0.78, 0.9), shaded(grey, 1.12), 12.0)  # bridge block
    deck.house((0.615, 0.655), 0.36, shaded(grey, 0.8), 12.0)  # mast
    deck.disc(0.57, 0.0, 1.6, WHITE, 4.0)
    deck.block((0.43, 0.48), (-0.62, -0.36), shaded(ship.deck, 0.6), 0.0)
    deck.block((0.43, 0.48), (0.36, 0.62), shaded(ship.deck, 0.6), 0.0)
    deck.house((0.725, 0.79), 0.42, shaded(ship.deck, 0.55), 0.0)  # launcher cells
    _gun(deck, 0.845, grey)


def _frigate(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    grey = varied(rng, (166, 171, 172), 7.0)
    _helipad(deck, (0.02, 0.235), (0.13, 4.6), shaded(ship.deck, 0.78))
    deck.house((0.24, 0.37), 0.84, shaded(grey, 1.05), 8.0)  # hangar
    deck.house((0.37, 0.46), 0.50, grey, 4.0)
    shift = rng.uniform(-0.012, 0.012)
    deck.house((0.465 + shift, 0.535 + shift), rng.uniform(0.42, 0.58), varied(rng, DARK, 6.0), 8.0)  # one funnel
    deck.house((rng.uniform(0.552, 0.57), rng.uniform(0.69, 0.72)), rng.uniform(0.72, 0.86), shaded(grey, 1.1), 10.0)
    deck.house((0.575, 0.615), 0.32, shaded(grey, 0.74), 14.0)  # mast
    if rng.random() < 0.6:
        deck.disc(0.30, 0.0, 1.6, WHITE, 3.0)
    if rng.random() < 0.5:
        deck.house((0.735, 0.77), 0.36, shaded(ship.deck, 0.62), 0.0)  # launcher cells
    deck.block((0.40, 0.44), (-0.78, -0.58), ORANGE if rng.random() < 0.4 else WHITE, 1.0)
    _gun(deck, 0.80, grey)


def _helipad(deck: _Deck, stations: tuple[float, float], mark: tuple[float, float], ground: Colour) -> None:
    deck.house(stations, 0.86, ground, 0.0)
    deck.ring(mark[0], min(mark[1], deck.ship.beam_m * 0.33), WHITE, ground)
    deck.line((stations[0] + 0.01, 0.0), (stations[1] - 0.005, 0.0), 0.7, WHITE)


def _gun(deck: _Deck, station: float, colour: Colour) -> None:
    deck.disc(station, 0.0, 2.6, colour, 3.0)
    deck.line((station, 0.0), (station + 0.05, 0.0), 0.8, shaded(colour, 0.8))


def _bridge_aft(deck: _Deck, stations: tuple[float, float], colour: Colour) -> None:
    """Draw the accommodation of a merchant ship: block, wings, funnel, lifeboats."""
    rng = deck.rng
    start, end = stations
    funnel = [(30, 60, 120), (150, 44, 40), (36, 38, 40), (206, 160, 60), (60, 110, 80)][rng.integers(5)]
    deck.house((start, end), 0.86, colour, 15.0)
    deck.house((end - 0.022, end - 0.002), 0.98, shaded(colour, 1.06), 3.0)  # bridge wings
    deck.house((start + 0.012, end - 0.035), 0.50, shaded(colour, 0.9), 3.0)
    deck.house((start - 0.045, start - 0.008), 0.34, varied(rng, funnel, 6.0), 16.0)
    for side in (-1.0, 1.0):
        deck.line((start + 0.01, side * 0.80), (start + 0.045, side * 0.80), 2.2, ORANGE)


def _container_ship(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    bridge = rng.choice([0.09, 0.15, 0.22])
    white = varied(rng, WHITE, 6.0)
    aft = [0.02] if bridge > 0.12 else []
    width = 12.8 + 1.4
    forward = np.arange(deck.u(bridge + 0.085), deck.u(0.925) - width, width)
    bays = [deck.u(station) + 1.0 for station in aft] + forward.tolist()
    fill = rng.uniform(0.72, 1.0)
    choice = rng.permutation(len(CONTAINERS))[: rng.integers(4, 8)]
    for u in bays:
        rooms = [half_breadth(ship, (end / ship.length_m) + 0.5) for end in (u, u + 12.6)]
        columns = int((min(rooms) - 1.0) // 2.5)
        tiers = rng.integers(2, 6)
        if columns < 1:
            continue
        deck.sketch.box((u, u + 12.6), (-columns * 2.5, columns * 2.5), shaded(ship.deck, 0.62), 0.0)
        for column in range(-columns, columns):
            if rng.random() > fill:
                continue
            tier = max(1, int(tiers - rng.integers(0, 2)))
            for start, end in [(0.0, 6.1), (6.4, 12.5)] if rng.random() < 0.3 else [(0.0, 12.4)]:
                colour = varied(rng, CONTAINERS[choice[rng.integers(len(choice))]], 8.0)
                deck.sketch.box((u + start, u + end), (column * 2.5, column * 2.5 + 2.4), colour, tier * 1.6)
    _bridge_aft(deck, (bridge, bridge + 0.07), white)
    deck.line((0.955, -0.12), (0.955, 0.12), 1.6, white)


def _oil_tanker(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    pipe = varied(rng, (186, 178, 160), 10.0)
    deck.line((0.24, 0.0), (0.95, 0.0), 2.4, pipe)  # catwalk and pipes along the middle
    for share in (-0.16, 0.16):
        deck.line((0.25, share), (0.88, share), 1.2, shaded(pipe, 0.86))
    middle = rng.uniform(0.54, 0.60)
    for offset in (-0.024, -0.008, 0.008, 0.024):  # manifold
        deck.line((middle + offset, -0.78), (middle + offset, 0.78), 1.3, pipe)
    deck.block((middle - 0.03, middle + 0.03), (-0.88, -0.76), shaded(ship.deck, 0.7), 0.0)
    deck.block((middle - 0.03, middle + 0.03), (0.76, 0.88), shaded(ship.deck, 0.7), 0.0)
    side = rng.choice([-1.0, 1.0])
    deck.sketch.line(
        (deck.u(middle + 0.04), deck.v(0.2 * side)), (deck.u(middle - 0.06), deck.v(0.3 * side)), 1.6, WHITE, 7.0
    )  # hose crane
    for station in np.arange(0.30, 0.90, rng.uniform(0.075, 0.1)):  # tank lids and deck frames
        deck.line((station, -0.9), (station, 0.9), 0.7, shaded(ship.deck, 0.84))
        for share in (-0.5, 0.5):
            deck.disc(station + 0.025, share, 1.3, shaded(pipe, 0.9), 0.8)
    if rng.random() < 0.45:
        deck.disc(0.70, -0.48, 4.6, (196, 188, 90))
        deck.disc(0.70, -0.48, 3.4, shaded(ship.deck, 0.9))
    _bridge_aft(deck, (0.10, 0.19), varied(rng, WHITE if rng.random() < 0.75 else CREAM, 6.0))
    deck.house((0.94, 0.965), 0.30, pipe, 2.0)


def _bulk_carrier(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    lids = varied(rng, [(172, 166, 150), (150, 112, 92), (136, 146, 138), (188, 182, 168)][rng.integers(4)], 8.0)
    holds = int(rng.integers(5, 8)) if ship.length_m > 150 else int(rng.integers(4, 6))
    starts = np.linspace(0.225, 0.945, holds + 1)
    geared = rng.random() < 0.6
    crane = varied(rng, [(220, 190, 90), (216, 216, 208), (200, 150, 70)][rng.integers(3)], 8.0)
    open_hold = int(rng.integers(holds)) if rng.random() < 0.3 else -1
    for index, (start, end) in enumerate(pairwise(starts.tolist())):
        gap = 0.15 * (end - start)
        half = 0.60 if index < holds - 1 else 0.52
        deck.house((start + gap, end - gap), half, shaded(lids, 0.7), 2.4)
        inner = (start + gap + 0.006, end - gap - 0.006)
        if index == open_hold:
            deck.house(inner, half - 0.06, varied(rng, (64, 56, 50), 8.0), 0.0)
        else:
            deck.house(inner, half - 0.06, varied(rng, lids, 3.0), 0.0)
            deck.line((start + gap, 0.0), (end - gap, 0.0), 0.8, shaded(lids, 0.72))
        if geared and index > 0:
            deck.disc(start, 0.0, 2.3, crane, 9.0)
            swing = rng.choice([-1.0, 1.0]) * 0.12
            reach = start + (end - start) * 0.85
            deck.sketch.line((deck.u(start), 0.0), (deck.u(reach), deck.v(swing)), 1.3, crane, 5.0)
    _bridge_aft(deck, (0.085, 0.17), varied(rng, WHITE if rng.random() < 0.75 else CREAM, 6.0))


def _ferry(deck: _Deck) -> None:
    rng, ship = deck.rng, deck.ship
    white = varied(rng, WHITE, 5.0)
    top = varied(rng, [(92, 128, 150), (104, 140, 116), (176, 178, 174), (160, 96, 76)][rng.integers(4)], 8.0)
    deck.house((0.02, 0.13), 0.82, (112, 114, 112), 0.0)  # open car deck
    deck.house((0.12, 0.80), 0.90, white, 9.0)
    deck.house((0.16, 0.60), 0.62, top, 0.0)  # sun deck
    deck.house((0.63, 0.77), 0.78, shaded(white, 1.05), 4.0)
    deck.house((0.72, 0.765), 0.96, shaded(white, 0.86), 2.0)  # bridge
    funnel = varied(rng, [(178, 52, 44), (38, 66, 128), (216, 170, 60), (52, 54, 58)][rng.integers(4)], 6.0)
    if rng.random() < 0.5:
        deck.house((0.28, 0.37), 0.26, funnel, 8.0)
    else:
        deck.block((0.27, 0.35), (-0.56, -0.30), funnel, 7.0)
        deck.block((0.27, 0.35), (0.30, 0.56), funnel, 7.0)
    deck.house((0.44, 0.52), 0.3, shaded(white, 0.94), 2.0)
    boats = max(2, round(ship.length_m / 28))
    for station in np.linspace(0.24, 0.60, boats):
        for side in (-0.82, 0.82):
            deck.line((station, side), (station + 7.0 / ship.length_m, side), 2.4, ORANGE)
    deck.line((0.84, 0.0), (0.93, 0.0), 1.4, shaded(ship.deck, 0.7))


_FITTINGS: dict[ShipClass, Callable[[_Deck], None]] = {
    "aircraft_carrier": _carrier,
    "destroyer": _destroyer,
    "frigate": _frigate,
    "container_ship": _container_ship,
    "oil_tanker": _oil_tanker,
    "bulk_carrier": _bulk_carrier,
    "ferry": _ferry,
}

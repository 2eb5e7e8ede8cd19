"""Ships: silhouettes against what is drawn, what is rasterised by others, and where they lie."""

import math

import numpy as np
import pytest
import rasterio.features
from shapely.geometry import Polygon, box

from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import SHIP_CLASSES, Synthetic
from ifkd.data.synthetic.decks import ship_sketch
from ifkd.data.synthetic.drawing import Frame, Sun
from ifkd.data.synthetic.picture import Painter, clip_polygon, polygon_area
from ifkd.data.synthetic.ships import DESIGNS, build_ship
from ifkd.data.synthetic.world import make_world

NO_SHADOW = Sun(0.0, 0.0)


def a_ship(kind, *, seed=0, angle=0.7, similarity=0.0):
    build = build_ship(kind, np.random.default_rng(seed), similarity=similarity)
    return build.at(Frame(300.4, 280.9, angle))


@pytest.fixture(scope="module")
def config():
    return Synthetic()


@pytest.fixture(scope="module")
def world(config):
    # Place (1, 3) has two harbours, so ships are moored as well as at sea.
    return make_world(config, place=(1, 3), size_px=(1024, 1024), ships=30, wide=False)


@pytest.mark.parametrize("kind", SHIP_CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.9, 3.5, 5.2])
def test_box_is_tight_around_what_is_drawn(kind, angle):
    gsd_m = 2.0
    for seed in range(3):
        ship = a_ship(kind, seed=seed, angle=angle, similarity=0.5)
        stamp = ship_sketch(ship).stamp(NO_SHADOW, gsd_m)
        rows, columns = np.nonzero(stamp.transmission < 128)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
        drawn += [stamp.left, stamp.top, stamp.left, stamp.top]
        # A pointed bow covers less than half of its last pixels, hence the second pixel on the inner side.
        inset = (drawn - np.array(ship.bounds) / gsd_m) * [1, 1, -1, -1]
        assert inset.min() > -1.0
        assert inset.max() < 2.0


@pytest.mark.parametrize("kind", SHIP_CLASSES)
def test_everything_on_a_ship_lies_inside_its_silhouette(kind):
    gsd_m = 0.5
    for seed in range(4):
        ship = a_ship(kind, seed=seed)
        stamp = ship_sketch(ship).stamp(NO_SHADOW, gsd_m)
        outline = ship.outline / gsd_m - [stamp.left, stamp.top]
        silhouette = rasterio.features.rasterize(
            [(Polygon(outline), 1)], out_shape=stamp.transmission.shape, dtype="uint8"
        ).astype(bool)
        drawn = stamp.transmission < 128
        assert (drawn & silhouette).sum() / (drawn | silhouette).sum() > 0.97


def test_classes_differ_in_size_and_mixing_them_brings_look_alikes_closer():
    def mean_length(kind, similarity):
        return np.mean([a_ship(kind, seed=seed, similarity=similarity).length_m for seed in range(80)])

    apart = mean_length("destroyer", 0.0) - mean_length("frigate", 0.0)
    mixed = mean_length("destroyer", 1.0) - mean_length("frigate", 1.0)
    assert apart > 30
    assert 0 < mixed < apart - 5


def test_a_class_with_no_ship_short_enough_is_declined():
    rng = np.random.default_rng(0)
    assert build_ship("aircraft_carrier", rng, similarity=0.0, longest_m=120.0) is None
    assert build_ship("ferry", rng, similarity=0.0, longest_m=70.0).length_m <= 70.0


def test_demo_ships_have_the_promised_extent_in_pixels(config):
    lengths = [length / config.gsd_m for design in DESIGNS.values() for length in design.length_m]
    assert min(lengths) >= 24
    assert max(lengths) <= 115


def test_ships_neither_overlap_nor_stand_on_land(world):
    hulls = [Polygon(ship.outline) for ship in world.ships]
    assert len(hulls) > 20
    for index, hull in enumerate(hulls):
        for other in hulls[:index]:
            assert hull.intersection(other).area < 0.02 * min(hull.area, other.area)
    for ship in world.ships:
        assert (world.terrain.at(ship.outline[:, 1], ship.outline[:, 0]) < 0).all()


def test_ships_lie_in_harbours_and_at_sea_and_some_move(world):
    in_basin = 0
    for ship in world.ships:
        for basin in world.terrain.basins:
            u, v = basin.frame.to_local(np.array([ship.frame.x]), np.array([ship.frame.y]))
            in_basin += bool(abs(u[0]) < basin.half_length_m and 0 < v[0] < basin.reach_m)
    assert 5 <= in_basin <= len(world.ships) - 5
    assert any(ship.speed > 0 for ship in world.ships)
    assert any(ship.speed == 0 for ship in world.ships)


def test_truth_of_a_window_is_the_clipped_silhouette(config, world):
    painter = Painter(world, config)
    middle = world.ships[0].frame  # a moored ship, so that others are near
    window = Window(int(middle.y / config.gsd_m) - 150, int(middle.x / config.gsd_m) - 120, 256, 256)
    truths = painter.truths(window)
    frame = box(0, 0, 256, 256)
    expected = []
    for ship in world.ships:
        hull = Polygon(ship.outline / config.gsd_m - [window.left, window.top])
        part = hull.intersection(frame)
        if not part.is_empty and min(part.bounds[2] - part.bounds[0], part.bounds[3] - part.bounds[1]) >= 1:
            expected.append((ship.kind, part.bounds, part.area / hull.area))
    assert len(expected) == len(truths) > 2
    for truth, (kind, bounds, share) in zip(truths, expected, strict=True):
        assert truth.kind == kind
        np.testing.assert_allclose(truth.box, bounds, atol=1e-6)
        if not math.isfinite(world.weather.cloud_level):
            assert truth.ignore == (share < 0.4)


@pytest.mark.parametrize("seed", range(20))
def test_clipping_agrees_with_shapely(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, 7))
    points = np.stack([40 * np.cos(angles), 25 * np.sin(angles)], axis=1) + rng.uniform(-20, 120, 2)
    clipped = clip_polygon(points, (80, 100))
    expected = Polygon(points).convex_hull.intersection(box(0, 0, 100, 80)).area
    assert polygon_area(clipped) == pytest.approx(expected, abs=1e-6)


def test_heading_is_clockwise_from_the_top(config, world):
    painter = Painter(world, config)
    for truth, ship in zip(painter.truths(Window(0, 0, 1024, 1024)), world.ships, strict=True):
        bow = ship.frame.to_world(np.array([[1.0, 0.0]]))[0] - [ship.frame.x, ship.frame.y]
        angle = math.degrees(math.atan2(bow[0], -bow[1])) % 360
        assert (truth.heading_deg - angle + 180) % 360 - 180 == pytest.approx(0.0, abs=1e-6)

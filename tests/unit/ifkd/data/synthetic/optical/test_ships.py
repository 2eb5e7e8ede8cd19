"""Ships: silhouettes against drawn and rasterized pixels, sizes of classes, positions, labels."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import rasterio.features
from shapely.geometry import Polygon, box

from ifkd.core.oriented_boxes import corners
from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import SHIP_CLASSES, ShipDatasetConfig
from ifkd.data.synthetic.geometry import Frame
from ifkd.data.synthetic.labels import LabelSource
from ifkd.data.synthetic.optical.decks import ship_sketch
from ifkd.data.synthetic.optical.painter import ShipPainter
from ifkd.data.synthetic.optical.ships import DESIGNS, build_ship
from ifkd.data.synthetic.optical.world import make_world

NO_SHADOW = (0.0, 0.0)


def a_ship(kind, *, seed=0, angle=0.7, similarity=0.0):
    ship = build_ship(kind, np.random.default_rng(seed), similarity=similarity)
    return ship.at(Frame(300.4, 280.9, angle))


@pytest.fixture(scope="module")
def config():
    return ShipDatasetConfig()


@pytest.fixture(scope="module")
def world(config):
    # Place (1, 3) has two harbors, so that some ships are moored and others are at sea.
    return make_world(config, place=(1, 3), size_px=(1024, 1024), ships=30, wide=False)


@pytest.mark.parametrize("kind", SHIP_CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.9, 3.5, 5.2])
def test_box_is_tight_around_what_is_drawn(kind, angle):
    gsd_m = 2.0
    for seed in range(3):
        ship = a_ship(kind, seed=seed, angle=angle, similarity=0.5)
        window, pixels = ship_sketch(ship).stamp(NO_SHADOW, gsd_m)
        rows, columns = np.nonzero(pixels[..., 3] < 128)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
        drawn += [*(window.left, window.top) * 2]
        # A pointed bow covers less than half of its last pixels, hence the second pixel on the inner side.
        inset = (drawn - np.array(ship.bounds) / gsd_m) * [1, 1, -1, -1]
        assert inset.min() > -1.0
        assert inset.max() < 2.0


@pytest.mark.parametrize("kind", SHIP_CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.8, 2.3, 4.0])
def test_the_oriented_box_is_tight_around_what_is_drawn(kind, angle):
    gsd_m = 1.0
    ship = a_ship(kind, angle=angle)
    window, pixels = ship_sketch(ship).stamp(NO_SHADOW, gsd_m)
    (label,) = LabelSource([ship], gsd_m).labels(window)
    x, y, length, width, angle_deg = label.oriented.tolist()
    assert angle_deg == pytest.approx(math.degrees(angle) % 180, abs=1e-3)
    assert (length, width) == pytest.approx((ship.length_m, ship.beam_m), rel=0.02)  # a carrier's deck is narrower
    rows, columns = np.nonzero(pixels[..., 3] < 128)
    ahead, aside = columns + 0.5 - x, rows + 0.5 - y
    along = ahead * math.cos(angle) + aside * math.sin(angle)
    across = aside * math.cos(angle) - ahead * math.sin(angle)
    for drawn, half in ((along, length / 2), (across, width / 2)):
        # A pointed bow covers less than half of its last pixels.
        assert -half - 0.75 < drawn.min() < -half + 1.0
        assert half - 2.5 < drawn.max() < half + 0.75


def test_moored_ships_side_by_side_have_separate_oriented_boxes_at_any_angle():
    ships = [a_ship("destroyer", seed=seed, angle=0.79) for seed in range(3)]
    ships = [ship.at(ship.frame.moved(0.0, 22.0 * number)) for number, ship in enumerate(ships)]
    labels = LabelSource(ships, 2.0).labels(Window(0, 0, 400, 400))
    hulls = [Polygon(corners(label.oriented[None])[0]) for label in labels]
    assert max(one.intersection(other).area for one, other in combinations(hulls, 2)) < 1.0
    upright = [box(*label.box) for label in labels]
    assert min(one.intersection(other).area / one.union(other).area for one, other in pairwise(upright)) > 0.5


def test_rafted_ships_are_moored_side_by_side():
    def rafted(fraction):
        setting = ShipDatasetConfig.model_validate({"ships": {"moored_fraction": 0.7, "rafted_fraction": fraction}})
        ships = make_world(setting, place=(1, 1), size_px=(1024, 1024), ships=60, wide=False).ships
        hulls = [Polygon(ship.outline) for ship in ships]
        found = 0
        for (one, hull), (other, other_hull) in combinations(zip(ships, hulls, strict=True), 2):
            assert hull.distance(other_hull) > 0.9
            u, v = one.frame.to_local(np.array([other.frame.x]), np.array([other.frame.y]))
            beside = abs(u[0]) < 20 and abs(abs(v[0]) - (one.beam_m + other.beam_m) / 2) < 6
            found += beside and abs(math.sin(one.frame.angle - other.frame.angle)) < 0.05
        return found

    assert rafted(0.0) < 3
    assert rafted(0.8) >= 8


@pytest.mark.parametrize("kind", SHIP_CLASSES)
def test_all_fittings_are_inside_the_silhouette(kind):
    gsd_m = 0.5
    for seed in range(4):
        ship = a_ship(kind, seed=seed)
        window, pixels = ship_sketch(ship).stamp(NO_SHADOW, gsd_m)
        outline = ship.outline / gsd_m - (window.left, window.top)
        silhouette = rasterio.features.rasterize(
            [(Polygon(outline), 1)], out_shape=pixels.shape[:2], dtype="uint8"
        ).astype(bool)
        drawn = pixels[..., 3] < 128
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
    lengths = [length / config.gsd_m for kind in SHIP_CLASSES for length in DESIGNS[kind].length_m]
    assert min(lengths) >= 24
    assert max(lengths) <= 115


def test_ships_overlap_neither_each_other_nor_land(world):
    hulls = [Polygon(ship.outline) for ship in world.ships]
    assert len(hulls) > 20
    for index, hull in enumerate(hulls):
        for other in hulls[:index]:
            assert hull.intersection(other).area < 0.02 * min(hull.area, other.area)
    for ship in world.ships:
        assert (world.terrain.at(ship.outline[:, 1], ship.outline[:, 0]) < 0).all()


def test_ships_are_in_harbors_and_at_sea_and_some_move(world):
    in_harbor = sum(bool(world.terrain.in_harbor(*ship.outline.T).any()) for ship in world.ships)
    assert 5 <= in_harbor <= len(world.ships) - 5
    assert any(ship.speed > 0 for ship in world.ships)
    assert any(ship.speed == 0 for ship in world.ships)


def test_labels_of_a_window_are_clipped_silhouettes(config, world):
    painter = ShipPainter(world, config)
    middle = world.ships[0].frame  # a moored ship, so that others are near
    window = Window(int(middle.y / config.gsd_m) - 150, int(middle.x / config.gsd_m) - 120, 256, 256)
    labels = painter.labels(window)
    frame = box(0, 0, 256, 256)
    expected = []
    for ship in world.ships:
        hull = Polygon(ship.outline / config.gsd_m - [window.left, window.top])
        part = hull.intersection(frame)
        if not part.is_empty and min(part.bounds[2] - part.bounds[0], part.bounds[3] - part.bounds[1]) >= 1:
            expected.append((ship.category, part.bounds, part.area / hull.area))
    assert len(expected) == len(labels) > 2
    for label, (kind, bounds, share) in zip(labels, expected, strict=True):
        assert label.category == kind
        np.testing.assert_allclose(label.box, bounds, atol=1e-3)
        if not math.isfinite(world.weather.cloud_level):
            assert label.ignore == (share < 0.4)


def test_heading_is_clockwise_from_the_top(config, world):
    painter = ShipPainter(world, config)
    for label, ship in zip(painter.labels(Window(0, 0, 1024, 1024)), world.ships, strict=True):
        bow = ship.frame.to_world(np.array([[1.0, 0.0]]))[0] - [ship.frame.x, ship.frame.y]
        angle = math.degrees(math.atan2(bow[0], -bow[1])) % 360
        assert (label.heading_deg - angle + 180) % 360 - 180 == pytest.approx(0.0, abs=1e-6)

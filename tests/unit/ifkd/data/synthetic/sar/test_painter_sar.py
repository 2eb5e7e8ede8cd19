"""SAR imagery of aircraft: physical laws, labels and files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from scipy import stats
from shapely import Polygon

from deploy.cli.main import main
from ifkd.core.config import load, override
from ifkd.core.errors import ConfigError
from ifkd.core.tiling import Window
from ifkd.data.coco import read_coco
from ifkd.data.synthetic.config import AIRCRAFT_CLASSES, AircraftDatasetConfig
from ifkd.data.synthetic.dataset import make_dataset
from ifkd.data.synthetic.geometry import Frame
from ifkd.data.synthetic.painters import load_synthetic, painter_of
from ifkd.data.synthetic.sar.aircraft import TYPES, park, scattering_centers
from ifkd.data.synthetic.sar.airfield import Airfields, make_airfields
from ifkd.data.synthetic.sar.painter import REACH_PX, SarPainter, coherent_sum, point_response, speckled
from ifkd.data.synthetic.scene import paint_block, scene_blocks, scene_painter
from ifkd.imagery.image_files import read_image

ROOT = Path(__file__).parents[6]
PLAIN = AircraftDatasetConfig(modality="sar_aircraft")


def small(*overrides: str) -> AircraftDatasetConfig:
    given = ["tile_px=128", "images.train=4", "images.validation=1", "images.test=1", "images.per_place=2"]
    scene = ["scenes.size_px=[700, 600]", "scenes.block_px=256", "scenes.aircraft_per_km2=40.0"]
    return override(PLAIN, [*given, *scene, *overrides], source="here")


def seen_at(incidence_deg: float) -> AircraftDatasetConfig:
    """Every scattering center echoes at its own strength; the angle may be one that a file could not have."""
    aircraft = PLAIN.aircraft.model_copy(update={"fluctuation_db": 0.0, "missing_fraction": 0.0})
    radar = PLAIN.radar.model_copy(update={"incidence_deg": incidence_deg})
    return PLAIN.model_copy(update={"aircraft": aircraft, "radar": radar})


@pytest.fixture(scope="module")
def world() -> Airfields:
    return make_airfields(PLAIN, place=(3, 1), size_px=(900, 1000), count=30)


@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_do_not_depend_on_how_a_world_is_cut(world: Airfields, bits: int) -> None:
    config = override(PLAIN, [f"radar.bits={bits}"], source="here")
    x, y = (int(value) for value in (world.aircraft[0].frame.x, world.aircraft[0].frame.y))
    window = Window(y - 150, x - 140, 301, 280)
    whole = SarPainter(world, config).paint(window)
    assert whole.dtype == f"uint{bits}"
    again = np.zeros_like(whole)
    painter = SarPainter(world, config)
    for top in range(0, window.height, 97):
        for left in range(0, window.width, 83):
            part = Window(
                window.top + top,
                window.left + left,
                min(97, window.height - top),
                min(83, window.width - left),
            )
            again[top : top + part.height, left : left + part.width] = painter.paint(part)
    np.testing.assert_array_equal(again, whole)
    if bits == 16:
        assert whole.max() > 255 * 10  # strong echoes do not saturate
        assert whole.max() < 65535


@pytest.mark.parametrize("looks", [1, 4])
def test_speckle_is_circular_gaussian_with_the_mean_it_was_given(looks: int) -> None:
    rows, columns = np.arange(500, 1020), np.arange(-40, 480)
    mean = np.full((520, 520), 3.7, np.float32)
    power = np.zeros((510, 510))
    for look in range(looks):
        field = speckled(mean, rows[:, None], columns[None, :], resolution_px=1.5, seed=40 + look)
        assert field.shape == power.shape
        power += np.abs(field) ** 2
    apart = power[::6, ::6].ravel() / looks  # further apart than an echo is wide
    assert apart.mean() == pytest.approx(3.7, rel=0.05)
    assert apart.mean() ** 2 / apart.var() == pytest.approx(looks, rel=0.1)
    assert stats.kstest(apart, stats.gamma(looks, scale=3.7 / looks).cdf).pvalue > 0.001
    neighbors = np.corrcoef(power[:, :-1].ravel(), power[:, 1:].ravel())[0, 1]
    taps = point_response(np.arange(-REACH_PX, REACH_PX + 1), 1.5)
    assert neighbors == pytest.approx(((taps[1:] * taps[:-1]).sum() / (taps**2).sum()) ** 2, abs=0.02)


@given(st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_an_echo_falls_from_its_middle_and_widens_with_the_resolution(one: float, other: float) -> None:
    offsets = np.linspace(0, 1, 40)
    narrow, wide = (point_response(offsets, value) for value in sorted((one, other)))
    assert narrow[0] == wide[0] == pytest.approx(1.0)
    assert (np.diff(narrow) <= 1e-12).all()
    assert (narrow <= wide + 1e-12).all()
    assert (point_response(np.array([-REACH_PX, REACH_PX + 0.5]), one) == 0).all()


def test_echoes_are_the_coherent_sum_of_points() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(10, 40, (12, 2))
    strengths = (rng.normal(size=12) + 1j * rng.normal(size=12)).astype(np.complex64)
    window, found = coherent_sum(places, strengths, resolution_px=1.5)
    wanted = np.zeros(found.shape, complex)
    for (x, y), strength in zip(places, strengths, strict=True):
        for row in range(wanted.shape[0]):
            for column in range(wanted.shape[1]):
                offsets = np.array([window.left + column + 0.5 - x, window.top + row + 0.5 - y])
                wanted[row, column] += strength * point_response(offsets, 1.5).prod()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    window, found = coherent_sum(np.array([[20.5, 30.5]]), np.ones(1, np.complex64), resolution_px=1.5)
    peak = np.unravel_index(np.abs(found).argmax(), found.shape)
    assert (window.left + peak[1], window.top + peak[0]) == (20, 30)


@pytest.mark.parametrize("kind", AIRCRAFT_CLASSES)
def test_layover_grows_with_height_and_dimensions_are_those_of_the_type(kind: Any) -> None:
    heights = scattering_centers(TYPES[kind])[:, 2]
    assert heights.max() <= TYPES[kind].height
    frame = Frame(500.0, 300.0, 0.7)
    steep, flat, none = (park(kind, frame, np.random.default_rng(0), seen_at(angle)) for angle in (25.0, 60.0, 89.9999))
    for one, angle in ((steep, 25.0), (flat, 60.0)):
        shift = none.positions - one.positions
        np.testing.assert_allclose(shift[:, 0], heights / math.tan(math.radians(angle)), atol=1e-3)
        np.testing.assert_allclose(shift[:, 1], 0.0, atol=1e-9)
    along, across = frame.to_local(none.positions[:, 0], none.positions[:, 1])
    assert np.ptp(along) == pytest.approx(TYPES[kind].length, abs=3.0)
    assert np.ptp(across) == pytest.approx(TYPES[kind].span, abs=0.01)
    np.testing.assert_allclose(across.min(), -across.max(), atol=1e-3)


def test_engines_shine_from_ahead_and_the_fuselage_from_aside() -> None:
    def power(angle: float, least_v: float, most_v: float) -> float:
        one = park("a330", Frame(0.0, 0.0, angle), np.random.default_rng(0), seen_at(40.0))
        aside = np.abs(scattering_centers(TYPES["a330"])[:, 1])
        chosen = (aside >= least_v) & (aside <= most_v)
        return float((np.abs(one.echoes[chosen]) ** 2).sum())

    # the sensor stands far to the left: a nose to the left looks at it
    engine, side = (9.3, 9.5), (2.7, 2.9)
    assert power(math.pi, *engine) > 2 * power(math.pi / 2, *engine)
    assert power(math.pi, *engine) > 2 * power(0.0, *engine)
    assert power(math.pi / 2, *side) > 10 * power(math.pi, *side)
    assert power(math.pi / 2, *side) == pytest.approx(power(-math.pi / 2, *side))


def test_aircraft_stand_inside_the_world_apart_and_on_pavement() -> None:
    world = make_airfields(PLAIN, place=(9, 0), size_px=(3000, 5000), count=120)
    assert len(world.aircraft) > 90
    assert {one.category for one in world.aircraft} == set(AIRCRAFT_CLASSES)
    hulls = [Polygon(one.outline) for one in world.aircraft]
    for number, one in enumerate(world.aircraft):
        x1, y1, x2, y2 = one.bounds
        assert min(x1, y1) >= 0
        assert x2 <= 5000
        assert y2 <= 3000
        assert not any(hulls[number].intersects(other) for other in hulls[:number])
        here = (np.array([one.frame.x]), np.array([one.frame.y]))
        assert any(
            abs(u[0]) <= strip.half_length and abs(v[0]) <= strip.half_width
            for strip in world.ground
            for u, v in [strip.frame.to_local(*here)]
        )


def test_an_aircraft_changes_pixels_in_its_box_only(world: Airfields) -> None:
    bare = Airfields(world.seed, world.ground)
    window = Window(0, 0, 900, 1000)
    config = override(PLAIN, ["radar.bits=16"], source="here")
    with_them, without = SarPainter(world, config), SarPainter(bare, config)
    gain = with_them.paint(window)[..., 0].astype(float) ** 2 - without.paint(window)[..., 0].astype(float) ** 2
    inside = np.zeros(gain.shape, bool)
    for label in with_them.labels(window):
        x1, y1, x2, y2 = label.box
        part = np.s_[math.floor(y1) - 1 : math.ceil(y2) + 1, math.floor(x1) - 1 : math.ceil(x2) + 1]
        inside[part] = True
        assert gain[part].sum() > 0
    assert gain[inside].clip(0).sum() > 0.98 * gain.clip(0).sum()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sar") / "data"
    make_dataset(small("radar.bits=16"), folder, workers=1)
    return folder


def test_files_are_valid_and_do_not_depend_on_the_number_of_processes(made: Path, tmp_path: Path) -> None:
    make_dataset(small("radar.bits=16"), tmp_path / "data", workers=2)
    names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(tmp_path / "data") for path in (tmp_path / "data").rglob("*") if path.is_file()
    )
    for name in names:
        assert (made / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    for split, count in (("train", 4), ("validation", 1), ("test", 1)):
        dataset = read_coco(made / f"{split}.json")
        assert dataset.classes == AIRCRAFT_CLASSES
        assert len(dataset) == len(COCO(str(made / f"{split}.json")).imgs) == count
        for image in dataset.images:
            with Image.open(image.path) as tile:
                assert tile.mode == "I;16"
            assert read_image(image.path, size=(128, 128)).shape == (128, 128, 3)


def test_a_scene_does_not_depend_on_the_size_of_its_blocks(made: Path) -> None:
    config = small("radar.bits=16")
    with rasterio.open(made / "scenes" / "scene_00.tif") as raster:
        assert (raster.count, raster.dtypes[0], raster.shape) == (1, "uint16", (700, 600))
        assert raster.block_shapes == [(256, 256)]
        pixels = raster.read(1)
    other = small("radar.bits=16", "scenes.block_px=176")
    for window in scene_blocks(other):
        part = np.s_[window.top : window.bottom, window.left : window.right]
        np.testing.assert_array_equal(paint_block(other, 0, window)[..., 0], pixels[part])
    labels = json.loads((made / "scenes" / "scene_00.json").read_text())
    assert len(labels["annotations"]) == len(scene_painter(config, 0).boxes) > 3


def test_the_configuration_file_lists_all_keys_with_their_defaults() -> None:
    path = ROOT / "configs" / "sar_aircraft_data.toml"
    assert load(path, AircraftDatasetConfig) == load_synthetic(path) == PLAIN
    sections = load(path, AircraftDatasetConfig).model_dump()
    import tomllib

    written = tomllib.loads(path.read_text("utf-8"))
    for name, section in sections.items():
        assert name in written
        if isinstance(section, dict):
            assert set(section) == set(written[name])


def test_all_mistakes_in_a_configuration_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text('modality = "sonar"\ntile_px = 3\n[radar]\nbits = 12\nlooks = 0\nmode = 1\n')
    assert main(["data", "synth", str(tmp_path / "a.toml"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "5 mistakes" in message
    for key in ("modality", "tile_px", "radar.bits", "radar.looks", "radar.mode"):
        assert key in message
    (tmp_path / "b.toml").write_text('modality = "sar_aircraft"\n[aircraft]\nclasses = ["a330", "a330"]\n')
    with pytest.raises(ConfigError, match="each once"):
        load_synthetic(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match="There is no file"):
        load_synthetic(tmp_path / "c.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.toml", "b.toml"]


def test_both_modalities_have_the_same_interface(world: Airfields) -> None:
    for config, bands in ((load_synthetic(ROOT / "configs" / "demo_data.toml"), 3), (PLAIN, 1)):
        painter = painter_of(config, place=(1, 1), size_px=(300, 400), objects=6, wide=False)
        window = Window(20, 30, 64, 80)
        assert painter.paint(window).shape == (64, 80, bands)
        assert config.traits.bands == bands
        whole = [label.box for label in painter.labels(Window(0, 0, 300, 400))]
        np.testing.assert_allclose(sorted(whole), sorted(map(tuple, painter.boxes.tolist())), atol=1e-3)

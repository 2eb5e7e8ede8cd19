"""The data set on disk: reproducible bytes, labels that other readers accept, complete folders only."""

import contextlib
import io
import json
import tomllib
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from shapely.geometry import Polygon

from deploy.cli.main import main
from ifkd.core import config
from ifkd.core.errors import ConfigError, OutputError
from ifkd.core.tiling import Window
from ifkd.data.coco import read_coco
from ifkd.data.synthetic import dataset as dataset_module
from ifkd.data.synthetic.config import SPLITS, ShipDatasetConfig
from ifkd.data.synthetic.dataset import make_dataset
from ifkd.data.synthetic.optical.painter import ShipPainter
from ifkd.data.synthetic.optical.world import make_world
from ifkd.data.synthetic.scene import paint_block, scene_blocks, scene_painter
from ifkd.data.synthetic.tiles import choose_windows, tile_places

DEMO = Path(__file__).parents[5] / "configs" / "demo_data.toml"


def small(**changes):
    values = {
        "tile_px": 96,
        "images": {"train": 4, "validation": 1, "test": 2, "per_place": 2},
        "ships": {"per_tile": 2.0},
        "conditions": {"cloud_fraction": 0.6},
        "scenes": {"size_px": [272, 400], "block_px": 128, "ships_per_km2": 30.0, "count": 2},
    }
    return ShipDatasetConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    record = make_dataset(small(), folder, workers=1)
    assert record["made"]
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_configuration_gives_the_same_bytes_for_any_number_of_workers(made, tmp_path):
    make_dataset(small(), tmp_path / "again", workers=2)
    assert files_of(made) == files_of(tmp_path / "again")


def test_another_seed_gives_other_images(made, tmp_path):
    only_tiles = {"scenes": {"count": 0}, "images": {"train": 1, "validation": 0, "test": 0}}
    make_dataset(small(seed=8, **only_tiles), tmp_path / "other", workers=1)
    name = "images/train_00000.png"
    assert (made / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_a_scene_does_not_depend_on_its_blocks(made):
    expected = None
    for block_px in (64, 112, 512):
        scenes = {**small().scenes.model_dump(), "block_px": block_px}
        setting = small(scenes=scenes)
        painted = np.zeros((*setting.scenes.size_px, 3), np.uint8)
        for window in scene_blocks(setting):
            block = paint_block(setting, 0, window)
            painted[window.top : window.bottom, window.left : window.right] = block
        if expected is None:
            with rasterio.open(made / "scenes" / "scene_00.tif") as raster:
                expected = np.moveaxis(raster.read(), 0, 2)
        np.testing.assert_array_equal(painted, expected)


def test_tiles_and_labels_are_read_alike_by_our_reader_and_pycocotools(made):
    images = 0
    for split in SPLITS:
        ours = read_coco(made / f"{split}.json")
        assert ours.classes == ShipDatasetConfig().ships.classes
        for image in ours.images:
            images += 1
            assert image.oriented is None or np.isfinite(image.oriented).all()
            with Image.open(image.path) as picture:
                assert picture.size == (96, 96)
                assert picture.mode == "RGB"
                assert np.asarray(picture).std() > 3
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = COCO(made / f"{split}.json")
        for annotation in theirs.anns.values():
            corners = np.array(annotation["segmentation"]).reshape(4, 2)
            sides = np.linalg.norm(np.diff(corners, axis=0), axis=1)
            assert sides[0] == pytest.approx(sides[2], abs=0.01)
            assert Polygon(corners).area == pytest.approx(sides[0] * sides[1], rel=0.01)
            # The silhouette, of which bbox and area are stated, touches all sides of the oriented box.
            assert float(mask_tools.area(theirs.annToRLE(annotation))) < 1.7 * annotation["area"] + 12
            assert Polygon(corners).area > annotation["area"] * 0.999
            x, y, width, height = annotation["bbox"]
            ends = [*(np.array([x, y]) - corners.min(axis=0)), *(corners.max(axis=0) - [x + width, y + height])]
            assert min(ends) > -0.01
            assert max(ends) < sides.min()
            bow = np.deg2rad(annotation["heading_deg"])
            along = (corners[1] - corners[0]) / sides[0]  # parallel to the heading, or across for a square remainder
            assert min(abs(along @ [np.sin(bow), -np.cos(bow)]), abs(along @ [np.cos(bow), np.sin(bow)])) < 0.01
    assert images == len(list((made / "images").iterdir())) == 7


def test_geojson_of_a_scene_is_the_raster_transform_of_its_boxes(made):
    for number in range(2):
        path = made / "scenes" / f"scene_{number:02d}.tif"
        content = json.loads(path.with_suffix(".json").read_text())
        map_of = geopandas.read_file(path.with_suffix(".geojson"))
        assert map_of.crs == "EPSG:4326"
        assert len(map_of) == len(content["annotations"]) > 3
        with rasterio.open(path) as raster:
            assert raster.crs == "EPSG:32633"
            assert raster.res == (2.0, 2.0)
            assert (raster.height, raster.width) == (272, 400)
            # The inverse uses pyproj, which the writer does not.
            projected = map_of.to_crs(raster.crs)
            for annotation, shape in zip(content["annotations"], projected.geometry, strict=True):
                x, y, width, height = annotation["bbox"]
                left, top = raster.transform @ (x, y)
                right, bottom = raster.transform @ (x + width, y + height)
                np.testing.assert_allclose(shape.bounds, (left, bottom, right, top), atol=0.01)
        assert all(shape.exterior.is_ccw for shape in map_of.geometry)


def test_scenes_are_tiled_lossless_and_adjacent(made):
    with (
        rasterio.open(made / "scenes" / "scene_00.tif") as first,
        rasterio.open(made / "scenes" / "scene_01.tif") as second,
    ):
        assert first.profile["tiled"]
        assert first.profile["compress"] == "deflate"
        assert first.block_shapes[0] == (128, 128)
        assert first.bounds.right == second.bounds.left
        assert first.bounds.top == second.bounds.top


def test_boxes_in_a_scene_contain_the_ships():
    """Painting a scene with and without its ships differs inside the boxes far more than elsewhere."""
    setting = small(
        conditions={"cloud_fraction": 0.0, "haze_fraction": 0.0, "noise_dn": 0.0, "small_boats": 0.0},
        ships={"under_way_fraction": 0.0},
    )
    painter = scene_painter(setting, 0)
    window = Window(0, 0, *setting.scenes.size_px)
    with_ships = painter.paint(window).astype(int)
    object.__setattr__(painter.world, "ships", ())
    bare = type(painter)(painter.world, setting).paint(window).astype(int)
    changed = np.abs(with_ships - bare).max(axis=2) > 12
    in_boxes = np.zeros(changed.shape, bool)
    labels = scene_painter(setting, 0).labels(window)
    assert labels
    for label in labels:
        x1, y1, x2, y2 = label.box
        inside = np.s_[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        assert changed[inside].mean() > 0.05
        in_boxes[inside] = True
    # Only the shadow on the water, a few pixels wide, is outside.
    assert changed[~in_boxes].mean() < 0.02


def test_a_complete_folder_is_kept_and_a_different_one_is_not_overwritten(made, tmp_path):
    folder = tmp_path / "data"
    only_one = {"scenes": {"count": 0}, "images": {"train": 1, "validation": 0, "test": 0}}
    make_dataset(small(**only_one), folder, workers=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert not make_dataset(small(**only_one), folder, workers=1)["made"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(OutputError, match=r"config\.gsd_m was 2\.0, is 3\.0[\s\S]*--force"):
        make_dataset(small(gsd_m=3.0, **only_one), folder, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_dataset(small(gsd_m=3.0, **only_one), folder, workers=1, force=True)["made"]
    assert json.loads((folder / "synthetic.json").read_text())["config"]["gsd_m"] == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_foreign_files_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not a synthetic data set"):
        make_dataset(small(), tmp_path, workers=1, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_module, "write_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(small(), tmp_path / "data", workers=1)
    assert not list(tmp_path.iterdir())


def test_windows_of_a_place_do_not_overlap_and_show_ships():
    setting = ShipDatasetConfig()
    world = make_world(setting, place=(1, 4), size_px=(1024, 1024), ships=32, wide=False)
    windows = choose_windows(setting, ShipPainter(world, setting).boxes, 5, [0])
    covered = np.zeros((1024, 1024), int)
    for window in windows:
        covered[window.top : window.bottom, window.left : window.right] += 1
    assert covered.max() == 1
    assert covered.sum() == 5 * 256 * 256


def test_places_cover_every_split_once():
    setting = small(images={"train": 7, "validation": 2, "test": 0, "per_place": 3})
    found = [(p.split, p.first_tile + i) for p in tile_places(setting) for i in range(p.tiles)]
    assert found == [("train", i) for i in range(7)] + [("validation", i) for i in range(2)]


@pytest.mark.parametrize("crs", ["EPSG:4326", "nonsense", "EPSG:2229"])
def test_a_reference_system_not_in_meters_is_refused(crs, tmp_path):
    scenes = {**small().scenes.model_dump(), "crs": crs}
    with pytest.raises(ConfigError, match=r"scenes\.crs"):
        make_dataset(small(scenes=scenes), tmp_path / "data", workers=1)


def test_the_demo_file_lists_all_keys_with_their_defaults():
    def keys(value):
        return {key: keys(item) if isinstance(item, dict) else None for key, item in value.items()}

    written = tomllib.loads(DEMO.read_text(encoding="utf-8"))
    assert keys(written) == keys(ShipDatasetConfig().model_dump())
    assert config.load(DEMO, ShipDatasetConfig) == ShipDatasetConfig()


def test_classes_can_be_chosen():
    setting = ShipDatasetConfig.model_validate({"ships": {"classes": ["ferry", "destroyer", "frigate"]}})
    world = make_world(setting, place=(1, 0), size_px=(1024, 1024), ships=30, wide=False)
    assert len(world.ships) > 20
    assert {ship.category for ship in world.ships} == {"ferry", "destroyer", "frigate"}
    with pytest.raises(ConfigError, match="each once"):
        config.parse({"ships": {"classes": ["ferry", "ferry"]}}, ShipDatasetConfig, source="x")


def test_the_command_makes_a_data_set_and_reports_its_folder(tmp_path, capsys):
    images = ["images.train=1", "images.validation=0", "images.test=0"]
    overrides = [*images, "scenes.count=0", "tile_px=64", "ships.per_tile=2"]
    words = ["data", "synth", str(DEMO), *overrides, "--out", str(tmp_path / "data"), "--workers", "1"]
    assert main(words) == 0
    assert f"{tmp_path / 'data'} made" in capsys.readouterr().out
    assert main(words) == 0
    assert "was complete already" in capsys.readouterr().out
    assert main([*words[:3], "tile_px=64", *words[-4:]]) == 2
    assert "images.train was 1, is 480" in capsys.readouterr().err


@pytest.mark.parametrize("number", [12, 16])
def test_many_windows_of_a_place_do_not_overlap_either(number):
    setting = ShipDatasetConfig()
    boxes = np.array([[100, 100, 140, 140], [500, 700, 560, 760]], np.float32)
    for seed in range(10):
        windows = choose_windows(setting, boxes, number, [seed])
        covered = np.zeros((1024, 1024), int)
        for window in windows:
            covered[window.top : window.bottom, window.left : window.right] += 1
        assert len(windows) == number
        assert covered.max() == 1

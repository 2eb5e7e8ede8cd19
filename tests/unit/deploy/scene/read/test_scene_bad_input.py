"""Scenes that are difficult to read or to locate give a result or an error."""

import json
import re
import warnings

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from deploy.cli.main import main
from deploy.scene.write.file_names import RESULT_FILES, RUN_FILE

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle").path
    engine = CountingEngine()
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)

    def run(scene, *options):
        out = tmp_path / "out"
        code = main(["detect", str(bundle), str(scene), "--out", str(out), *map(str, options)])
        printed, said = capsys.readouterr()
        run_json = json.loads((out / RUN_FILE).read_text()) if (out / RUN_FILE).exists() else None
        return code, printed, said, run_json

    run.out = tmp_path / "out"
    run.engine = engine
    return run


def damage(path, row, column):
    """Overwrite one compressed block of a tiled file with noise."""
    with rasterio.open(path) as dataset:
        block = dataset.block_shapes[0][0]
        offset = int(dataset.get_tag_item(f"BLOCK_OFFSET_{column // block}_{row // block}", "TIFF", bidx=1))
        size = int(dataset.get_tag_item(f"BLOCK_SIZE_{column // block}_{row // block}", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)


def test_an_unreadable_block_is_unreadable_and_everything_else_is_found(call, tmp_path):
    path = write_tif(
        tmp_path / "s.tif", sea(170, 200, OBJECTS), tiled=True, blockxsize=32, blockysize=32, compress="deflate"
    )
    damage(path, 40, 190)
    code, _, said, run = call(path)
    assert code == 1
    holes = [hole["tile"] for hole in run["tiles"]["unreadable"]]
    assert holes == ["r0c3", "r0c4", "r1c3", "r1c4"][: len(holes)]
    assert re.search(
        rf"{len(holes)} of 20 tiles of s\.tif could not be read; the results of the others are written", said
    )
    assert "The first is r0c" in said
    assert "cannot be read at rows" in run["tiles"]["unreadable"][0]["problem"]
    assert {path.name for path in call.out.iterdir()} == {*RESULT_FILES, RUN_FILE}
    assert run["objects"] == len(OBJECTS)
    code, _, said, run = call(path, "--strict", "--no-resume")
    assert code == 2
    assert "The run stops here because of --strict" in said


@pytest.mark.parametrize("options", [{"tiled": True, "blockxsize": 32, "blockysize": 32}, {"blockysize": 8}, {}])
def test_a_file_cut_in_the_middle_gives_its_beginning(call, tmp_path, options):
    noisy = sea(170, 200, OBJECTS) + np.random.default_rng(0).integers(0, 9, (170, 200, 3)).astype(np.uint8)
    path = write_tif(tmp_path / "s.tif", noisy, compress="deflate", **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    code, _, said, run = call(path)
    assert code == 1
    assert re.search(r"\d+ of 20 tiles of s\.tif could not be read", said)
    assert 0 < len(run["tiles"]["unreadable"]) < 20
    assert run["objects"] >= 1


def test_a_scene_of_0_by_0_pixels_is_no_raster(call, tmp_path):
    path = tmp_path / "nothing.vrt"
    path.write_text('<VRTDataset rasterXSize="0" rasterYSize="0"></VRTDataset>')
    code, _, said, run = call(path)
    assert (code, run) == (2, None)
    assert re.match(r"error: .*nothing\.vrt is not a raster that can be read", said)
    assert not call.out.exists()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (40, 50)])
def test_scenes_of_a_pixel_a_line_or_less_than_a_tile(call, tmp_path, size):
    path = write_tif(tmp_path / "s.tif", np.full((*size, 3), 170, np.uint8))
    code, printed, _, run = call(path)
    assert code == 0
    assert f"in s.tif ({size[1]} x {size[0]} px, " in printed
    assert run["objects"] >= 1
    frame = geopandas.read_file(call.out / "detections.gpkg", layer="detections")
    west, south, east, north = frame.total_bounds
    assert (east - west, north - south) == (2 * size[1], 2 * size[0])


def test_pixels_that_are_no_number_are_gaps(call, tmp_path):
    pixels = sea(170, 200, OBJECTS).astype(np.float32)
    pixels[:, 90:] = np.nan
    path = write_tif(tmp_path / "s.tif", pixels)
    code, _, _, run = call(path, "--scale-range", 0, 255)
    assert code == 0
    assert run["tiles"]["empty"] > 0
    assert run["objects"] == 2
    everywhere = write_tif(tmp_path / "nan.tif", np.full((90, 90), np.nan, np.float32))
    code, printed, _, run = call(everywhere)
    assert code == 0
    assert "0 objects in nan.tif (90 x 90 px, 0 tiles processed, 4 empty)" in printed


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_band_skips_tiles(call, tmp_path, internal):
    pixels = sea(170, 200, OBJECTS)
    mask = np.full((170, 200), 255, np.uint8)
    mask[:, 70:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = write_tif(tmp_path / "s.tif", pixels)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
    assert (tmp_path / "s.tif.msk").exists() is not internal
    code, _, _, run = call(path)
    assert code == 0
    assert run["tiles"]["empty"] == 12
    assert run["objects"] == 2


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_a_scene_around_a_pole(call, tmp_path, pole):
    """A polar stereographic scene with the pole in one of its objects."""
    objects = [(90, 75, 110, 95, 0), (20, 20, 40, 30, 1)]
    transform = Affine(100, 0, -10_000, 0, -100, 8_500)
    path = write_tif(tmp_path / "s.tif", sea(170, 200, objects), crs="EPSG:3995" if pole > 0 else "EPSG:3031",
                     transform=transform)  # fmt: skip
    code, _, _, _ = call(path)
    assert code == 0
    features = json.loads((call.out / "detections.geojson").read_text())["features"]
    assert len(features) == 2
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        if feature["properties"]["class_name"] == "cargo":
            assert shape.bounds[2] - shape.bounds[0] == 360
            assert pole in {shape.bounds[1], shape.bounds[3]}


def test_a_vrt_whose_source_has_gone_is_said(call, tmp_path):
    source = write_tif(tmp_path / "part.tif", sea(170, 200, OBJECTS))
    vrt = tmp_path / "s.vrt"
    vrt.write_text(f"""<VRTDataset rasterXSize="200" rasterYSize="170">
      <SRS>EPSG:32633</SRS><GeoTransform>500000, 2, 0, 4500000, 0, -2</GeoTransform>
      {
        "".join(
            f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename>{source}</SourceFilename>'
            f"<SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
            for b in (1, 2, 3)
        )
    }</VRTDataset>""")
    assert call(vrt)[0] == 0
    source.unlink()
    code, _, said, _ = call(vrt, "--no-resume")
    assert code == 2
    assert re.search(r"No tile of s\.vrt is readable\. The first error: .*part\.tif", said)


def test_other_layouts_give_the_same_objects(call, tmp_path):
    pixels = sea(170, 200, OBJECTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        paths = {
            "strips": write_tif(tmp_path / "strips.tif", pixels, blockysize=7),
            "one strip": write_tif(tmp_path / "one.tif", pixels, blockysize=170, compress="deflate"),
            "bands apart": write_tif(
                tmp_path / "apart.tif", pixels, interleave="band", tiled=True, blockxsize=48, blockysize=64
            ),
            "BigTIFF": write_tif(tmp_path / "big.tif", pixels, BIGTIFF="YES", tiled=True, blockxsize=16, blockysize=16),
        }
        with rasterio.open(
            tmp_path / "s.png", "w", driver="PNG", height=170, width=200, count=3, dtype="uint8"
        ) as dataset:
            dataset.write(pixels.transpose(2, 0, 1), window=Window(0, 0, 200, 170))
        paths["PNG"] = tmp_path / "s.png"
        for name, path in paths.items():
            assert call(path)[0] == 0, name
            rows = json.loads((call.out / "detections.coco.json").read_text())
            assert {tuple(map(round, row["bbox"])) for row in rows} == {
                (x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2, _ in OBJECTS
            }, name

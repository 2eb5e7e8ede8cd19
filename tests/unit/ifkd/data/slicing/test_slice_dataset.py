"""`ifkd data slice`: data types, bands, gaps, invalid input, memory, interruption."""

import json
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import ExifTags, Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from deploy.cli.main import main
from ifkd.core.config import parse
from ifkd.core.errors import ConfigError, DataError, OutputError
from ifkd.data.coco import read_coco
from ifkd.data.slicing import slice_dataset as module
from ifkd.data.slicing.slice_dataset import slice_dataset
from ifkd.data.slicing.tile_plan import TileRules
from ifkd.imagery.image_files import read_image

SIZE = (100, 140)
RULES = TileRules(tile_px=64, overlap_px=16, max_empty_fraction=1.0)


def write_labels(folder: Path, name: str, boxes: list[tuple[float, ...]], size: tuple[int, int] = SIZE) -> Path:
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": list(box), "iscrowd": 0} for n, box in enumerate(boxes)
    ]
    image = {"id": 1, "file_name": name, "height": size[0], "width": size[1]}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def write_raster(path: Path, pixels: np.ndarray, mask: np.ndarray | None = None, **profile: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        count, height, width = pixels.shape
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, **profile
        ) as dataset:
            dataset.write(pixels)
            if mask is not None:
                dataset.write_mask(mask)


def noise(bands: int, dtype: str = "uint8", top: int = 250) -> np.ndarray:
    return np.random.default_rng(0).integers(1, top, (bands, *SIZE)).astype(dtype)


def tiles_in(folder: Path) -> dict[tuple[int, int], Path]:
    content = json.loads((folder / "tiles.json").read_text())
    return {
        (image["source"]["top"], image["source"]["left"]): folder / "images" / image["file_name"]
        for image in content["images"]
    }


def test_tiles_have_the_pixels_of_their_source(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(3))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    slice_dataset(labels, tmp_path / "out", RULES)
    source = read_image(tmp_path / "images" / "a.tif")
    found = tiles_in(tmp_path / "out")
    assert sorted(found) == [(0, 0), (0, 48), (0, 76), (36, 0), (36, 48), (36, 76)]
    for (top, left), path in found.items():
        np.testing.assert_array_equal(read_image(path), source[top : top + 64, left : left + 64])
    dataset = read_coco(tmp_path / "out" / "tiles.json")
    assert {image.scene for image in dataset.images} == {"a.tif"}


def test_keeps_a_fourth_band_and_turns_alpha_into_a_mask(tmp_path: Path) -> None:
    pixels = noise(4)
    write_raster(tmp_path / "images" / "nir.tif", pixels, photometric="MINISBLACK")
    pixels[3, :, 70:] = 0
    pixels[3, :, :70] = 255
    write_raster(tmp_path / "images" / "alpha.tif", pixels, photometric="RGB", alpha="YES")
    for name, bands in (("nir", 4), ("alpha", 3)):
        slice_dataset(write_labels(tmp_path, f"{name}.tif", [(10, 10, 20, 12)]), tmp_path / name, RULES)
        for path in tiles_in(tmp_path / name).values():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(path) as dataset:
                    assert dataset.count == bands
                    assert ColorInterp.alpha not in dataset.colorinterp
    tile = read_image(tiles_in(tmp_path / "alpha")[0, 48])
    assert (tile[:, 22:] == (124, 116, 104)).all()
    np.testing.assert_array_equal(tile[:, :22], pixels[:3, :64, 48:70].transpose(1, 2, 0))
    assert (36, 76) not in tiles_in(tmp_path / "alpha")


@pytest.mark.parametrize(("option", "bands"), [([], 4), (["--alpha", "none"], 4), (["--alpha", "4"], 3)])
def test_near_infrared_declared_as_alpha_is_kept_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], bands: int
) -> None:
    pixels = noise(4)
    pixels[3, :, 70:] = 0
    write_raster(tmp_path / "images" / "a.tif", pixels)
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    command = ["data", "slice", str(labels), "--out", str(tmp_path / "out"), "--tile-px", "64", *option]
    assert main([*command, "--max-empty-fraction", "1"]) == 0
    assert ("Band 4 of a.tif is declared as alpha" in capsys.readouterr().out) == (not option)
    path = tiles_in(tmp_path / "out")[0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            assert dataset.count == bands


def test_undeclared_nodata_is_reported_and_not_in_the_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = noise(1, "int16", 5000)
    pixels[:, :20] = -32768
    write_raster(tmp_path / "images" / "a.tif", pixels)
    labels = write_labels(tmp_path, "a.tif", [(10, 30, 20, 12)])
    assert main(["data", "slice", str(labels), "--out", str(tmp_path / "out"), "--tile-px", "64"]) == 0
    low, high = np.percentile(pixels[:, 20:], (2, 98))
    said = capsys.readouterr().out
    assert f"data.imagery.limits = [{low:g}, {high:g}]" in said
    assert "20 % of the pixels of a.tif are -32768, which is not declared as nodata" in said


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0.0), ("int16", -9.0), ("float32", None), ("uint8", 255.0)])
def test_leaves_out_tiles_without_data_and_keeps_gaps(tmp_path: Path, dtype: str, nodata: float | None) -> None:
    pixels = noise(1, dtype)
    pixels[:, :, 60:] = np.nan if nodata is None else nodata
    write_raster(tmp_path / "images" / "a.tif", pixels, **({} if nodata in {None, 255.0} else {"nodata": nodata}))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12), (115, 70, 20, 20)])
    rules = RULES.model_copy(update={"nodata": 255.0 if nodata == 255.0 else None})
    record = slice_dataset(labels, tmp_path / "out", rules)
    assert sorted(tiles_in(tmp_path / "out")) == [(0, 0), (0, 48), (36, 0), (36, 48)]
    assert record["contents"]["omitted_without_data"] == 2
    assert record["contents"]["account"]["objects"]["dropped"] == {"tiles_without_data": 1}
    tile = read_image(tiles_in(tmp_path / "out")[0, 48])
    assert (tile[:, 12:] == (124, 116, 104)).all()
    assert not (tile[:, :12] == (124, 116, 104)).all()
    half = slice_dataset(labels, tmp_path / "half", rules.model_copy(update={"min_valid_fraction": 0.5}))
    assert half["contents"]["omitted_without_data"] == 4


def test_prints_percentiles_for_16_bits_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1, "uint16", 5000))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    command = ["data", "slice", str(labels), "--out", str(tmp_path / "out"), "--tile-px", "64"]
    assert main(command) == 0
    low, high = np.percentile(noise(1, "uint16", 5000), (2, 98))
    assert f"data.imagery.limits = [{low:g}, {high:g}]" in capsys.readouterr().out
    assert main(command) == 0
    assert "complete already" in capsys.readouterr().out
    write_raster(tmp_path / "images" / "a.tif", noise(1))
    assert main(command) == 2
    assert "with other settings: images.sha256 was" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert "limits" not in capsys.readouterr().out


def test_counts_complete_visible_and_missing_objects(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1))
    boxes = [(10, 10, 20, 12), (5, 5, 90, 10), (0, 0, 140, 100)]
    labels = write_labels(tmp_path, "a.tif", boxes)
    record = slice_dataset(labels, tmp_path / "out", RULES.model_copy(update={"cut_objects": "drop"}))["contents"]
    objects = record["account"]["objects"]
    assert (record["tiles"], objects["received"], objects["kept"]) == (6, 3, 1)
    assert (objects["changed"], objects["dropped"]) == ({"cut_at_tile_borders": 1}, {"less_visible": 1})
    assert record["account"]["images"]["changed"] == {"cut_into_tiles": 1}
    assert record["boxes_restored"] == 2


@pytest.mark.parametrize("orientation", [3, 6])
def test_refuses_an_image_that_an_exif_orientation_turns(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "images").mkdir()
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(tmp_path / "images" / "a.png", exif=exif.tobytes())
    size = SIZE if orientation == 3 else SIZE[::-1]
    labels = write_labels(tmp_path, "a.png", [(10, 10, 20, 12)], size=size)
    with pytest.raises(DataError, match=r"as stored or as displayed|another size"):
        slice_dataset(labels, tmp_path / "out", RULES)


def test_tile_names_differ_regardless_of_case(tmp_path: Path) -> None:
    for name in ("a.tif", "A.png", "ä b.tif"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(noise(1)[0]).save(tmp_path / "images" / name)
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    content = json.loads(labels.read_text())
    content["images"] += [
        {**content["images"][0], "id": n, "file_name": name} for n, name in ((2, "A.png"), (3, "ä b.tif"))
    ]
    labels.write_text(json.dumps(content))
    slice_dataset(labels, tmp_path / "out", RULES)
    names = [path.name.casefold() for path in (tmp_path / "out" / "images").iterdir()]
    assert len(set(names)) == len(names) == 18
    assert len(read_coco(tmp_path / "out" / "tiles.json")) == 18


@pytest.mark.parametrize(
    "names",
    [
        ["海" * 80 + ".png", "海" * 80 + "洋.png", "é" * 120 + ".png", "x" * 251 + ".png"],
        ["a.png", "b/a.png", "b/a_000002.png"],
        ["ha\u0308fen.png", "h\u00e4fen.png", "H\u00c4FEN.png"],
    ],
)
def test_tile_names_fit_a_file_system_and_differ(tmp_path: Path, names: list[str]) -> None:
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    content = json.loads(labels.read_text())
    entry = content["images"].pop()
    content["annotations"] = []
    rules = RULES.model_copy(update={"max_empty_fraction": 1.0})
    for number, name in enumerate(names, start=1):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(noise(1)[0]).save(tmp_path / "images" / name)
        content["images"].append({**entry, "id": number, "file_name": name})
    labels.write_text(json.dumps(content))
    slice_dataset(labels, tmp_path / "out", rules)
    found = [unicodedata.normalize("NFC", path.name.casefold()) for path in (tmp_path / "out" / "images").iterdir()]
    assert len(set(found)) == len(found) == 6 * len(names)


def write_damaged(path: Path, kind: str) -> None:
    """Write an image that is truncated at two thirds, or overwritten in the middle."""
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(path, format=kind.partition(" ")[0])
    content = path.read_bytes()
    half = len(content) // 2
    middle = content[:half] + b"\xff\xd0" * 20 + content[half + 40 :]
    path.write_bytes(middle if kind.endswith("middle") else content[: len(content) * 2 // 3])


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp", "jpeg middle"])
def test_refuses_a_damaged_image_and_leaves_no_files(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    write_damaged(tmp_path / "images" / "a.img", kind)
    labels = write_labels(tmp_path, "a.img", [(10, 10, 20, 12)])
    command = ["data", "slice", str(labels), "--out", str(tmp_path / "out"), "--tile-px", "64"]
    assert main([*command, "--max-empty-fraction", "1"]) == 2
    assert any(line.startswith("error: ") and "a.img" in line for line in capsys.readouterr().err.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(file_name="../a.tif"), "is not inside"),
        (lambda c: c["images"][0].update(file_name="b.tif"), "There is no image"),
        (lambda c: c["images"][0].update(height=99), "another size"),
        (lambda c: c["annotations"][0].update(bbox=[float("nan"), 1, 2, 3]), "not finite"),
        (lambda c: c["annotations"][0].update(bbox=[200, 1, 2, 3]), "outside its image"),
        (lambda c: c["annotations"][0].update(category_id=4), "category_id"),
        (lambda c: c["annotations"][1].update(id=0), "need unique ids"),
        (lambda c: c["annotations"].clear(), "No tile would be written"),
        (lambda c: c.pop("images"), "no images"),
    ],
)
def test_refuses_invalid_labels_and_leaves_no_files(tmp_path: Path, change: Any, message: str) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12), (40, 40, 20, 12)])
    content = json.loads(labels.read_text())
    change(content)
    labels.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        slice_dataset(labels, tmp_path / "out", TileRules(tile_px=64, overlap_px=16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images"]


def test_reports_all_invalid_rules() -> None:
    wrong = {"tile_px": 0, "min_visibility": 1.5, "max_empty_fraction": float("nan"), "seed": -1}
    with pytest.raises(
        ConfigError, match=r"4 mistakes[\s\S]*tile_px[\s\S]*min_visibility[\s\S]*max_empty_fraction[\s\S]*seed"
    ):
        parse(wrong, TileRules, source="here")
    with pytest.raises(ConfigError, match="overlap_px must be below tile_px, got 64 and 64"):
        parse({"tile_px": 64, "overlap_px": 64}, TileRules, source="here")


def test_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    with pytest.raises(OutputError, match="has other files and is not a folder of tiles"):
        slice_dataset(labels, tmp_path / "images", RULES, force=True)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.tif"]


def test_tiles_of_another_version_are_refused_in_one_line(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    slice_dataset(labels, tmp_path / "out", RULES)
    record = json.loads((tmp_path / "out" / "slice.json").read_text())
    (tmp_path / "out" / "slice.json").write_text(json.dumps({**record, "version": 1, "rules": {"rest": "drop"}}))
    with pytest.raises(OutputError, match=r"out is a folder of tiles of another version of ifkd\. .*--force"):
        slice_dataset(labels, tmp_path / "out", RULES)
    assert slice_dataset(labels, tmp_path / "out", RULES, force=True)["made"]


def test_an_interrupted_run_leaves_no_files_or_the_earlier_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    slice_dataset(labels, tmp_path / "out", RULES)
    before = sorted((tmp_path / "out").rglob("*"))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "tiles_content", interrupted)
    for name in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            slice_dataset(labels, tmp_path / name, RULES.model_copy(update={"seed": 5}), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images", "out"]
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    side = 30_000  # 900 MB of pixels in a sparse file; every window is read
    (tmp_path / "images").mkdir()
    profile = {
        "tiled": True,
        "blockxsize": 1024,
        "blockysize": 1024,
        "sparse_ok": True,
        "nodata": 255,
        "dtype": "uint8",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            tmp_path / "images" / "a.tif", "w", driver="GTiff", count=1, height=side, width=side, **profile
        ) as dataset:
            dataset.write(np.full((1, 4, 4), 9, np.uint8), window=((20_000, 20_004), (20_000, 20_004)))
    labels = write_labels(tmp_path, "a.tif", [(19_990, 19_990, 40, 40)], size=(side, side))
    code = (
        "import sys; from pathlib import Path; from ifkd.data.slicing.slice_dataset import slice_dataset;"
        "from ifkd.data.slicing.tile_plan import TileRules; from deploy.bench.system_monitor import process_peak_mb;"
        "rules = TileRules(tile_px=1024, overlap_px=64, min_valid_fraction=0);"
        "record = slice_dataset(Path(sys.argv[1]), Path(sys.argv[2]), rules);"
        "print(record['contents']['tiles'], process_peak_mb())"
    )
    command = [sys.executable, "-c", code, str(labels), str(tmp_path / "out")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(printed[0]) == 1
    assert float(printed[1]) < 450


def test_a_nodata_value_that_differs_in_its_last_digits_is_another_rule(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(1, "float32"))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    slice_dataset(labels, tmp_path / "out", RULES.model_copy(update={"nodata": 16777215.0}))
    with pytest.raises(OutputError, match="nodata"):
        slice_dataset(labels, tmp_path / "out", RULES.model_copy(update={"nodata": 16777216.0}))


def test_the_nodata_value_of_the_rules_is_for_images_that_state_none(tmp_path: Path) -> None:
    pixels = noise(1, "uint16")
    pixels[:, :, :64] = 65535
    write_raster(tmp_path / "images" / "a.tif", pixels, nodata=65535)
    labels = write_labels(tmp_path, "a.tif", [(100, 10, 20, 12)])
    rules = RULES.model_copy(update={"nodata": 0.0})
    assert slice_dataset(labels, tmp_path / "out", rules)["contents"]["omitted_without_data"] == 2


def test_a_mask_beside_an_image_makes_other_tiles(tmp_path: Path) -> None:
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(path)
    labels = write_labels(tmp_path, "a.png", [(10, 10, 20, 12)])
    slice_dataset(labels, tmp_path / "out", RULES)
    path.with_name("a.png.msk").write_bytes(b"mask")
    with pytest.raises(OutputError, match="images"):
        slice_dataset(labels, tmp_path / "out", RULES)


def test_values_that_json_does_not_have_are_left_out_of_tiles(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(3))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    content = json.loads(labels.read_text())
    content["annotations"][0] |= {"heading_deg": float("nan"), "source": "pilot"}
    content["categories"][0]["supercategory"] = float("nan")
    labels.write_text(json.dumps(content))
    slice_dataset(labels, tmp_path / "out", RULES)
    written = json.loads((tmp_path / "out" / "tiles.json").read_text())
    assert all("heading_deg" not in one and one["source"] == "pilot" for one in written["annotations"])
    assert written["categories"] == [{"id": 1, "name": "ship"}]


def test_an_id_that_is_a_list_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "a.tif", noise(3))
    labels = write_labels(tmp_path, "a.tif", [(10, 10, 20, 12)])
    content = json.loads(labels.read_text())
    content["annotations"][0]["id"] = [1]
    labels.write_text(json.dumps(content))
    with pytest.raises(DataError, match="need unique ids"):
        slice_dataset(labels, tmp_path / "out", RULES)


def test_a_color_that_is_transparent_makes_no_gap_of_another_color(tmp_path: Path) -> None:
    """The transparent color of a PNG is one value for each band; black is not transparent green."""
    pixels = np.full((*SIZE, 3), 90, np.uint8)
    pixels[10:30] = 0
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path, transparency=(0, 255, 0))
    labels = write_labels(tmp_path, "a.png", [(10, 10, 20, 12)])
    slice_dataset(labels, tmp_path / "out", RULES)
    source = read_image(path)
    for (top, left), tile in tiles_in(tmp_path / "out").items():
        np.testing.assert_array_equal(read_image(tile), source[top : top + 64, left : left + 64])

"""Conversion of data sets in other formats, laid out as their authors publish them, to COCO files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from deploy.cli.main import main
from ifkd.core.errors import DataError, UsageError
from ifkd.data.coco import read_coco
from ifkd.data.readers.convert import convert
from ifkd.data.readers.ship_classes import LEVEL_NAMES

SIZE = (40, 60)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)


def xml(objects: list[str]) -> str:
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>x</filename>{size}{''.join(objects)}</annotation>"


def voc_object(name: str, box: tuple[float, ...] = (5, 6, 25, 16), extra: str = "") -> str:
    edges = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{edges}</bndbox></object>"


@pytest.fixture
def ship_rs(tmp_path: Path) -> Path:
    """ShipRSImageNet in the layout of its authors: lists with .bmp, levels in the XML, an image without objects."""
    root = tmp_path / "ShipRSImageNet"
    voc = root / "VOC_Format"
    levels = "<difficult>1</difficult><level_0>1</level_0><level_1>2</level_1><level_2>6</level_2><level_3>11</level_3>"
    dock = "<level_0>2</level_0><level_1>4</level_1><level_2>25</level_2><level_3>50</level_3>"
    contents = {
        "100000001": [voc_object("Arleigh Burke DD", extra=levels), voc_object("Dock", (0, 0, 60, 40), extra=dock)],
        "100000002": [voc_object("RoRo")],
        "100000003": [],
    }
    (voc / "annotations").mkdir(parents=True)
    for stem, objects in contents.items():
        (voc / "annotations" / f"{stem}.xml").write_text(xml(objects))
        write_image(voc / "JPEGImages" / f"{stem}.bmp")
    (voc / "ImageSets").mkdir()
    (voc / "ImageSets" / "train.txt").write_text("100000001.bmp\n100000002.bmp\n")
    (voc / "ImageSets" / "test.txt").write_text("100000003.bmp\r\n")
    names = [{"id": n + 1, "name": name} for n, name in enumerate(LEVEL_NAMES[3])]
    box = {"bbox": [5, 6, 20, 10], "area": 150.0, "iscrowd": 0, "segmentation": [5, 6, 25, 6, 25, 16, 5, 16]}
    image = {"id": 1, "file_name": "100000001.bmp", "width": SIZE[1], "height": SIZE[0]}
    (root / "COCO_Format").mkdir()
    for level, category in enumerate((1, 2, 6, 11)):
        content = {
            "images": [image],
            "annotations": [{"id": 1, "image_id": 1, "category_id": category, **box}],
            "categories": names,
        }
        path = root / "COCO_Format" / f"ShipRSImageNet_bbox_train_level_{level}.json"
        path.write_text(json.dumps(content))
    return root


def found(path: Path, images: Path) -> list[tuple[str, list[float]]]:
    dataset = read_coco(path, images=images)
    return [
        (dataset.classes[label], box.tolist())
        for image in dataset.images
        for box, label in zip(image.boxes, image.labels, strict=True)
    ]


BURKE = ("Ship", "Warship", "Destroyer", "Arleigh Burke DD")
DOCK = ("Dock", "Dock", "Dock", "Dock")
RORO = ("Ship", "Merchant", "RoRo", "RoRo")


@pytest.mark.parametrize("level", range(4))
def test_ship_rs_image_net_in_voc_format(ship_rs, tmp_path, level):
    out = tmp_path / "out.json"
    done = convert("shiprsimagenet", ship_rs, out, split="train", class_level=level)
    assert found(out, done.image_folder) == [
        (BURKE[level], [5.0, 6.0, 25.0, 16.0]),
        (DOCK[level], [0.0, 0.0, 60.0, 40.0]),
        (RORO[level], [5.0, 6.0, 25.0, 16.0]),  # its XML states no levels, the class tree does
    ]
    assert tuple(done.objects) == LEVEL_NAMES[level]
    assert [image["source_id"] for image in json.loads(out.read_text())["images"]] == ["100000001", "100000002"]
    assert (done.images, done.ignored) == (2, 0)


@pytest.mark.parametrize("level", range(4))
def test_ship_rs_image_net_in_coco_format(ship_rs, tmp_path, level):
    source = ship_rs / "COCO_Format" / f"ShipRSImageNet_bbox_train_level_{level}.json"
    done = convert("shiprsimagenet", source, tmp_path / "out.json", class_level=level)
    assert found(tmp_path / "out.json", done.image_folder) == [(BURKE[level], [5.0, 6.0, 25.0, 16.0])]
    with pytest.raises(UsageError, match=f"has the classes of level {level}"):
        convert("shiprsimagenet", source, tmp_path / "out.json", class_level=(level + 1) % 4)


def test_the_class_tree_has_2_4_25_and_50_classes():
    assert [len(names) for names in LEVEL_NAMES] == [2, 4, 25, 50]
    assert LEVEL_NAMES[3][37] == "Container Ship"  # id 38
    assert LEVEL_NAMES[2][10] == "Auxiliary Ships"
    assert LEVEL_NAMES[1] == ("Other Ship", "Warship", "Merchant", "Dock")


def test_sar_aircraft_classes_and_splits(tmp_path, capsys):
    root = tmp_path / "SAR-AIRcraft-1.0"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for stem, name in (("0000001", "other"), ("0000002", "A320/321"), ("0000003", "A220")):
        (root / "Annotations" / f"{stem}.xml").write_text(xml([voc_object(name)]))
        write_image(root / "JPEGImages" / f"{stem}.JPG")  # upper case, as some tools write
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("0000001\n0000002\n")
    out = tmp_path / "train val.json"
    assert main(["data", "--json", "convert", "sar-aircraft", str(root), "--out", str(out), "--split", "trainval"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["objects"]) == ["A220", "A320/321", "A330", "ARJ21", "Boeing737", "Boeing787", "other"]
    assert result["objects"]["A320/321"] == result["objects"]["other"] == 1
    assert result["images"] == 2
    assert len(COCO(str(out)).getAnnIds()) == 2
    with pytest.raises(DataError, match=r"has no list val\.txt: expected one of trainval"):
        convert("sar-aircraft", root, out, split="val")


def test_voc_ignores_difficult_objects_and_reads_unicode_names(tmp_path):
    (tmp_path / "Annotations").mkdir()
    for stem, name in (("Hafen Kiel ä", "b10"), ("two", "b9")):
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(
            xml([voc_object(name, extra="<difficult>1</difficult>"), voc_object(name)]), encoding="utf-8"
        )
        write_image(tmp_path / "JPEGImages" / f"{stem}.png")
    done = convert("voc", tmp_path, tmp_path / "out.json")
    assert done.objects == {"b9": 1, "b10": 1}
    assert done.ignored == 2


def test_yolo_and_dota_give_the_same_box(tmp_path):
    yolo, dota = tmp_path / "yolo", tmp_path / "dota"
    for root in (yolo, dota):
        write_image(root / "images" / "a.png")
    (yolo / "labels").mkdir()
    (yolo / "classes.txt").write_text("tug\nferry\n")
    (yolo / "labels" / "a.txt").write_text(f"1 {15 / 60} {11 / 40} {20 / 60} {10 / 40}\n")
    (dota / "labelTxt").mkdir()
    diamond = "15 6 25 11 15 16 5 11 ferry 0"
    (dota / "labelTxt" / "a.txt").write_text(f"imagesource:x\ngsd:0.1\n{diamond}\n-4 -3 9 -3 9 9 -4 9 tug 1\n")
    for source_format, root in (("yolo", yolo), ("dota", dota)):
        done = convert(source_format, root, tmp_path / "out.json")
        name, box = found(tmp_path / "out.json", done.image_folder)[0]
        assert name == "ferry"
        np.testing.assert_allclose(box, [5, 6, 25, 16], atol=1e-4)
    assert done.ignored == 1
    assert "upright" in done.notes[0]


BOMB = '<!DOCTYPE a [<!ENTITY b "xx"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
NAN = xml([voc_object("a", (float("nan"), 0, 5, 5))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "defines entities or a document type"),
        ("", "is not an XML file"),
        ("<annotation><size>", "is not an XML file"),
        ("<annotation/>", "does not state the image's <size>"),
        (NAN, "not finite"),
        (xml([voc_object("a", (9, 9, 2, 2))]), "no area"),
        (xml([voc_object("a", (500, 0, 520, 5))]), "outside its image"),
        (xml(["<object><name>a</name></object>"]), "without <bndbox>"),
        (xml([voc_object("a", ("four", 0, 5, 5))]), "not a number: got 'four'"),
    ],
)
def test_refuses_an_invalid_annotation_and_writes_nothing(tmp_path, capsys, text, message):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    write_image(tmp_path / "JPEGImages" / "a.png")
    out = tmp_path / "out.json"
    assert main(["data", "convert", "voc", str(tmp_path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert not out.exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "", "a\0b", "sub/../../secret.png"])
def test_refuses_a_file_name_outside_the_image_folder(tmp_path, name):
    write_image(tmp_path / "secret.png")
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    image = {"id": 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    with pytest.raises(DataError, match=r"is not inside|is not a file name"):
        read_coco(path)


def test_refuses_a_huge_json_file_without_reading_it(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 2_000_000_000)  # a hole: it takes no disk
    with pytest.raises(DataError, match="too large for an annotation file: got 2000000000 bytes"):
        read_coco(path)


def test_refuses_deeply_nested_json(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="is not a JSON file"):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize("source_format", ["voc", "yolo", "dota", "shiprsimagenet", "sar-aircraft"])
def test_refuses_a_folder_of_another_format(tmp_path, source_format):
    with pytest.raises(DataError, match=r"is not a data set of this format|There is no folder"):
        convert(source_format, tmp_path, tmp_path / "out.json")

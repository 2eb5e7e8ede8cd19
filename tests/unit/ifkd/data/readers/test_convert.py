"""Conversion of data sets in other formats, laid out as their authors publish them, to COCO files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools.coco import COCO

from deploy.cli.main import main
from ifkd.core.errors import DataError, UsageError
from ifkd.core.oriented_boxes import corners, from_corners
from ifkd.data.coco import read_coco
from ifkd.data.readers.convert import convert
from ifkd.data.readers.ship_classes import LEVEL_NAMES
from ifkd.data.readers.voc import POLYGON
from ifkd.imagery.image_files import read_image

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


TURNED = [6.0, 6.0, 25.0, 8.5505, 24.0, 16.0, 5.0, 13.4495]
"""Corners of a ship in the box 5, 6, 25, 16."""


@pytest.fixture
def ship_rs(tmp_path: Path) -> Path:
    """ShipRSImageNet in the layout of its authors: lists with .bmp, levels in the XML, an image without objects."""
    root = tmp_path / "ShipRSImageNet"
    voc = root / "VOC_Format"
    levels = "<difficult>1</difficult><level_0>1</level_0><level_1>2</level_1><level_2>6</level_2><level_3>11</level_3>"
    turned = "".join(f"<{key}>{value}</{key}>" for key, value in zip(POLYGON, TURNED, strict=True))
    polygon = f"<polygon>{turned}</polygon>"
    dock = "<level_0>2</level_0><level_1>4</level_1><level_2>25</level_2><level_3>50</level_3>"
    contents = {
        "100000001": [
            voc_object("Arleigh Burke DD", extra=levels + polygon),
            voc_object("Dock", (0, 0, 60, 40), extra=dock),
        ],
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
    box = {"bbox": [5, 6, 20, 10], "area": 150.0, "iscrowd": 0, "segmentation": TURNED}
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
    content = json.loads(out.read_text())
    assert [image["source_id"] for image in content["images"]] == ["100000001", "100000002"]
    assert [one.get("segmentation") for one in content["annotations"]] == [[TURNED], None, None]
    assert (done.images, done.ignored) == (2, 0)


@pytest.mark.parametrize("level", range(4))
def test_ship_rs_image_net_in_coco_format(ship_rs, tmp_path, level):
    source = ship_rs / "COCO_Format" / f"ShipRSImageNet_bbox_train_level_{level}.json"
    done = convert("shiprsimagenet", source, tmp_path / "out.json", class_level=level)
    assert found(tmp_path / "out.json", done.image_folder) == [(BURKE[level], [5.0, 6.0, 25.0, 16.0])]
    (oriented,) = read_coco(tmp_path / "out.json", images=done.image_folder).images[0].oriented
    assert oriented_points(oriented) == [(5, 13), (6, 6), (24, 16), (25, 9)]
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
    diamond = "15 6 25 11 15 16 5 11 ferry 0"  # four sides of one length, but no rectangle
    (dota / "labelTxt" / "a.txt").write_text(f"imagesource:x\ngsd:0.1\n{diamond}\n-4 -3 9 -3 9 9 -4 9 tug 1\n")
    for source_format, root in (("yolo", yolo), ("dota", dota)):
        done = convert(source_format, root, tmp_path / "out.json")
        name, box = found(tmp_path / "out.json", done.image_folder)[0]
        assert name == "ferry"
        np.testing.assert_allclose(box, [5, 6, 25, 16], atol=1e-4)
    assert done.ignored == 1
    oriented = read_coco(tmp_path / "out.json", images=done.image_folder).images[0].oriented
    rhombus = shapely.Polygon([(15, 6), (25, 11), (15, 16), (5, 11)])
    assert oriented[0, 2:4].prod() == pytest.approx(rhombus.minimum_rotated_rectangle.area, rel=1e-4)
    assert oriented[1].tolist() == [4.5, 4.5, 9, 9, 0]  # cut at the border
    assert done.account.objects.changed == {"boxes_cross_border": 1}
    annotations = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [one["segmentation"] for one in annotations] == [
        [[15, 6, 25, 11, 15, 16, 5, 11]],
        [[-4, -3, 9, -3, 9, 9, -4, 9]],
    ]


BOMB = '<!DOCTYPE a [<!ENTITY b "xx"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
NAN = xml([voc_object("a", (float("nan"), 0, 5, 5))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "defines entities or a document type"),
        ("", "is not an XML file"),
        ("<annotation><size>", "is not an XML file"),
        (NAN, "boxes not finite: "),
        (xml([voc_object("a", (9, 9, 2, 2))]), "boxes without area: "),
        (xml([voc_object("a", (500, 0, 520, 5))]), "a.xml: object 1: [500, 0, 520, 5] in 60x40"),
        (xml(["<object><name>a</name></object>"]), "annotations malformed: "),
        (xml([voc_object("a", ("four", 0, 5, 5))]), "annotations malformed: "),
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


def yolo(root: Path, lines: str, *, image: str = "images/a.png", labels: str = "labels/a.txt") -> Path:
    """Write a YOLO data set of one image with the classes tug and ferry."""
    write_image(root / image)
    (root / labels).parent.mkdir(parents=True, exist_ok=True)
    (root / labels).write_text(lines)
    (root / "classes.txt").write_text("tug\nferry\n")
    return root


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/a.png", "labels/a.txt"),
        ("images/train/a.PNG", "labels/train/a.txt"),
        ("images/IMG_1.png", "labels/img_1.TXT"),
        ("images/höhe.png", "labels/ho\u0308he.txt"),  # composed, and as macOS writes it
        ("images/a.webp", "labels/a.txt"),
        ("train/images/a.b.png", "train/labels/a.b.txt"),
    ],
)
def test_pairs_images_and_labels_at_any_depth_and_in_any_case(tmp_path, image, labels):
    root = yolo(tmp_path / "data", "1 0.5 0.5 0.2 0.2\n", image=image, labels=labels)
    done = convert("yolo", root, tmp_path / "out.json")
    assert done.objects == {"tug": 0, "ferry": 1}
    assert (done.account.images.kept, done.account.objects.kept) == (1, 1)
    assert read_coco(tmp_path / "out.json", images=done.image_folder).images[0].path.is_file()


def test_counts_files_that_have_no_partner_or_several(tmp_path, capsys):
    root = yolo(tmp_path / "data", "0 0.5 0.5 0.2 0.2\n")
    (root / "labels" / "gone.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    (root / "labels" / "twins.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    for name in ("twins.png", "twins.bmp", "empty.png"):
        write_image(root / "images" / name)
    (root / "images" / "broken.heic").write_bytes(b"no picture")
    out = tmp_path / "out.json"
    assert main(["data", "convert", "yolo", str(root), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{out}: 2 images, 1 objects, 0 ignored\n")
    assert f"files missing: {root / 'labels' / 'gone.txt'}" in captured.out
    assert "2 of 6 images have no label file" in captured.out
    assert "error: 4 images and 3 objects were left out" in captured.err
    account = json.loads(out.read_text())["info"]["account"]
    assert account["images"]["dropped"] == {"files_missing": 1, "files_of_one_name": 2, "files_unreadable": 1}
    assert account["objects"]["dropped"] == {"files_missing": 2, "files_of_one_name": 1}


def oriented_points(oriented):
    """Return the corners of an oriented box [5], rounded, in ascending order."""
    return sorted((round(x), round(y)) for x, y in corners(oriented[None])[0].tolist())


def test_reads_polygons_and_rotated_boxes_of_yolo(tmp_path):
    lines = ["0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6", "1 0.5 0.1 0.7 0.5 0.5 0.9 0.3 0.5", "1 0.1 0.1 0.4 0.1 0.2 0.5",
             "0 0.1 0.1 0.3 0.5 0.2 0.3", "0 0.5 0.5 0.2 0.2"]  # fmt: skip
    done = convert("yolo", yolo(tmp_path / "data", "\n".join(lines)), tmp_path / "out.json")
    boxes = [box for _, box in found(tmp_path / "out.json", done.image_folder)]
    expected = [[6, 8, 30, 24], [18, 4, 42, 36], [6, 4, 24, 20], [6, 4, 18, 20], [24, 16, 36, 24]]
    np.testing.assert_allclose(boxes, expected, atol=1e-5)
    changed = {"smallest_rectangle_of_polygon": 1, "polygon_without_area": 1}
    assert (done.account.objects.kept, done.account.objects.changed) == (3, changed)
    oriented = read_coco(tmp_path / "out.json", images=done.image_folder).images[0].oriented
    assert oriented_points(oriented[0]) == [(6, 8), (6, 24), (30, 8), (30, 24)]
    np.testing.assert_allclose(oriented[1, :2], [30, 20], atol=1e-3)
    triangle = shapely.Polygon([(6, 4), (24, 4), (12, 20)])
    assert shapely.Polygon(corners(oriented[2:3])[0]).buffer(0.01).contains(triangle)
    assert oriented[2, 2:4].prod() == pytest.approx(triangle.minimum_rotated_rectangle.area, rel=1e-3)
    assert np.isnan(oriented[3:]).all()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 .3 .3 0 .1", "boxes_without_area"),
        ("0 .3 .3 1e-12 .1", "boxes_without_area"),
        ("0 nan .3 .1 .1", "boxes_not_finite"),
        ("0 7 7 .1 .1", "boxes_outside_image"),
        ("0 .3 .3 .1", "annotations_malformed"),
        ("0 .3 .3 wide .1", "annotations_malformed"),
        ("0 0,3 .3 .1 .1", "annotations_malformed"),
        ("2 .3 .3 .1 .1", "classes_unknown"),
        ("-1 .3 .3 .1 .1", "classes_unknown"),
        ("1.5 .3 .3 .1 .1", "classes_unknown"),
        ("barge .3 .3 .1 .1", "classes_unknown"),
    ],
)
def test_one_invalid_line_is_left_out_and_named(tmp_path, line, reason):
    root = yolo(tmp_path / "data", f"0 .5 .5 .2 .2\n\n{line}\n1.0 .5 .5 .2 .2\nferry .2 .2 .2 .2\n")
    done = convert("yolo", root, tmp_path / "out.json")
    assert done.account.objects.dropped == {reason: 1}
    assert done.account.objects.examples[reason][0].startswith(f"{root / 'labels' / 'a.txt'}: line 3")
    assert done.objects == {"tug": 1, "ferry": 2}


def test_refuses_boxes_of_another_form(tmp_path):
    root = yolo(tmp_path / "data", "0 30 20 10 10\n0 40 20 10 10\n0 .5 .5 .2 .2\n")  # most are pixels
    with pytest.raises(DataError, match="2 boxes that do not fit their images"):
        convert("yolo", root, tmp_path / "out.json")
    with pytest.raises(DataError, match="has no object that can be used"):
        convert("yolo", yolo(tmp_path / "all", "0 30 20 10 10\n"), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


ROBOFLOW = "train: ../train/images\nval: ..\\valid\\images\ntest:\nnc: 2\nnames: ['tug', 'no']\n"


@pytest.mark.parametrize(("split", "images"), [(None, 2), ("train", 1), ("valid", 1), ("val", 1)])
@pytest.mark.parametrize("names", ["['tug', 'no']", "{0: tug, 1: no}", "\n- tug\n- no"])
def test_reads_the_data_yaml_of_roboflow(tmp_path, split, images, names):
    root = tmp_path / "data"
    for part in ("train", "valid"):
        yolo(root, "1 0.5 0.5 0.2 0.2\n", image=f"{part}/images/a.png", labels=f"{part}/labels/a.txt")
    (root / "classes.txt").unlink()
    (root / "data.yaml").write_text(ROBOFLOW.replace("['tug', 'no']", names))
    for source in (root, root / "data.yaml"):
        done = convert("yolo", source, tmp_path / "out.json", split=split)
        assert (done.images, done.objects) == (images, {"tug": 0, "no": images})
        read = read_coco(tmp_path / "out.json", images=done.image_folder)
        assert all(image.path.is_file() for image in read.images)


def test_key_points_follow_the_box(tmp_path):
    root = yolo(tmp_path / "data", "0 0.5 0.5 0.2 0.2 0.9 0.9\n")
    (root / "data.yaml").write_text("names: [tug]\nkpt_shape: [1, 2]\ntrain: images\n")
    done = convert("yolo", root, tmp_path / "out.json")
    np.testing.assert_allclose(found(tmp_path / "out.json", done.image_folder)[0][1], [24, 16, 36, 24], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [tug\n", "is not a YAML file"),
        ("- tug\n", "is not a data.yaml"),
        ("train: images\n", "has no valid class names"),
        ("names: {0: tug, 2: barge}\n", "has no valid class names"),
        ("names: [tug]\nnc: 3\n", "has 1 names: got nc: 3"),
        ("names: [tug]\ntrain: /etc\n", "names an image folder that is not inside"),
        ("names: [tug]\ntrain: ../..\n", "names an image folder that is not inside"),
        ("names: [tug]\ntrain: absent/images\n", "names an image folder that is not inside"),
        ("names: [tug]\ntrain: !!python/object/apply:os.system [ls]\n", "names an image folder that is not inside"),
    ],
)
def test_refuses_an_invalid_data_yaml(tmp_path, text, message):
    root = yolo(tmp_path / "data", "0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        convert("yolo", root, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("word", "ignored", "unclear"),
    [("0", 0, 0), ("0.0", 0, 0), ("False", 0, 0), ("Unspecified", 0, 0), ("1", 1, 0), ("true", 1, 0), ("so so", 0, 1)],
)
def test_difficult_as_a_number_or_a_word(tmp_path, word, ignored, unclear):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(xml([voc_object("a", extra=f"<difficult>{word}</difficult>")]))
    write_image(tmp_path / "JPEGImages" / "a.png")
    done = convert("voc", tmp_path, tmp_path / "out.json")
    assert done.ignored == ignored
    assert done.account.objects.changed == ({"flags_unclear": 1} if unclear else {})


def test_sizes_and_partners_of_voc_files(tmp_path):
    (tmp_path / "Annotations").mkdir()
    texts = {"zero": xml([voc_object("a")]).replace(">60<", ">0<"), "other": xml([voc_object("a")]).replace("60", "90")}
    texts |= {"good": xml([voc_object("a")]), "gone": xml([voc_object("a")] * 2), "broken": "<annotation>"}
    for stem, text in texts.items():
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
    for stem in ("zero", "other", "good", "broken", "unlabeled"):
        write_image(tmp_path / "JPEGImages" / f"{stem}.png")
    account = convert("voc", tmp_path, tmp_path / "out.json").account
    assert (account.images.received, account.images.kept) == (6, 1)
    assert account.images.changed == {"sizes_malformed": 1}
    assert account.images.dropped == {
        "files_missing": 1,
        "labels_missing": 1,
        "labels_unreadable": 1,
        "sizes_differ": 1,
    }
    assert account.objects.dropped == {"files_missing": 2, "sizes_differ": 1}


@pytest.mark.parametrize(("orientation", "stated", "written"), [(6, SIZE[::-1], 1), (6, SIZE, 1), (3, SIZE, 0)])
def test_voc_labels_of_an_image_with_an_exif_orientation(tmp_path, orientation, stated, written):
    exif = Image.Exif()
    exif[0x112] = orientation
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    for stem, tag in (("a", exif.tobytes()), ("b", b"")):
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "JPEGImages" / f"{stem}.png", exif=tag)
        text = xml([voc_object("ship")])
        if stem == "a" and stated != SIZE:
            text = text.replace("width", "side").replace("height", "width").replace("side", "height")
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
    done = convert("voc", tmp_path, tmp_path / "out.json")
    assert done.images == 1 + written
    assert done.account.images.dropped == ({} if written else {"orientation_unclear": 1})
    for image in read_coco(tmp_path / "out.json", images=done.image_folder).images:
        assert read_image(image.path, size=image.size).shape[:2] == image.size


def coco(**changes: object) -> dict[str, object]:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 10], "iscrowd": 0}
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    return {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "tug"}], **changes}


def test_coco_files_with_mistakes(tmp_path):
    write_image(tmp_path / "sub" / "a.png")  # beside the file, as Roboflow exports it
    content = coco(
        categories=[
            {"id": 0, "name": "ships", "supercategory": "none"},
            {"id": "1", "name": "tug", "supercategory": "ships"},
        ],
        images=[
            {"id": 1, "file_name": "sub\\a.png", "height": "40", "width": 60},
            {"id": 2, "file_name": "gone.png", "height": 40, "width": 60},
        ],
        annotations=[
            {"id": 1, "image_id": "1", "category_id": 1, "bbox": [5, 6, 20, 10], "attributes": {"course": 40}},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5, 6, 0, 10]},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [5, 6, 20, 10]},
            {"id": 4, "image_id": 1, "category_id": 1, "bbox": [30, 20, 20, 10]},
        ],
    )
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    done = convert("coco", tmp_path / "_annotations.coco.json", tmp_path / "out.json")
    assert (done.objects, done.image_folder) == ({"tug": 2}, tmp_path)
    assert done.account.images.dropped == {"files_missing": 1}
    assert done.account.objects.dropped == {"boxes_without_area": 1, "files_missing": 1}
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["images"][0]["file_name"] == "sub/a.png"
    assert written["images"][0]["source_id"] == 1
    assert written["annotations"][0]["attributes"] == {"course": 40}


def test_coco_files_whose_images_are_elsewhere(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco()))
    done = convert("coco", tmp_path / "a.json", tmp_path / "out.json")
    assert (done.images, done.account.images.kept, done.image_folder) == (1, 1, tmp_path / "images")


def write_pair(folder: Path, labels: Path, text: str) -> None:
    write_image(folder / "a.png")
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(text)


@pytest.mark.parametrize(
    ("source_format", "images", "labels"),
    [
        ("yolo", "obj_train_data", "obj_train_data/a.txt"),
        ("yolo", ".", "a.txt"),
        ("yolo", "images", "images/a.txt"),
        ("voc", ".", "a.xml"),
        ("voc", "train", "train/a.xml"),
        ("voc", "images", "annotations/a.xml"),
        ("dota", "train/images", "train/labelTxt-v1.5/a.txt"),
    ],
)
def test_layouts_of_label_tools(tmp_path, source_format, images, labels):
    text = {"yolo": "0 0.5 0.5 0.2 0.2", "voc": xml([voc_object("tug")]), "dota": "5 6 25 6 25 16 5 16 tug 0"}
    write_pair(tmp_path / images, tmp_path / labels, text[source_format])
    if source_format == "yolo":
        (tmp_path / "obj.names").write_text("tug\n")
    done = convert(source_format, tmp_path, tmp_path / "out.json")
    assert done.objects == {"tug": 1}
    assert read_coco(tmp_path / "out.json", images=done.image_folder).images[0].path.is_file()


def test_a_folder_of_a_split_with_images_and_labels(tmp_path):
    for split in ("train", "valid"):
        write_pair(tmp_path / split, tmp_path / split / "a.xml", xml([voc_object("tug")]))
    assert convert("voc", tmp_path, tmp_path / "out.json").images == 2
    assert convert("voc", tmp_path, tmp_path / "out.json", split="valid").images == 1


def test_rotated_boxes_of_ro_label_img(tmp_path):
    center, sides, angle = np.array([30.0, 20.0]), np.array([20.0, 6.0]), 0.4
    numbers = zip(("cx", "cy", "w", "h", "angle"), [*center, *sides, angle], strict=True)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in numbers)
    text = xml([f"<object><type>robndbox</type><name>tug</name><robndbox>{box}</robndbox></object>"])
    write_pair(tmp_path / "JPEGImages", tmp_path / "Annotations" / "a.xml", text)
    done = convert("voc", tmp_path, tmp_path / "out.json")
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = center + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides / 2 @ turn.T
    expected = [*corners.min(axis=0), *corners.max(axis=0)]
    np.testing.assert_allclose(found(tmp_path / "out.json", done.image_folder)[0][1], expected, rtol=1e-6)
    assert done.account.objects.changed == {}
    oriented = read_coco(tmp_path / "out.json", images=done.image_folder).images[0].oriented
    np.testing.assert_allclose(oriented, [[*center, *sides, np.degrees(angle)]], rtol=1e-5)


def test_labels_of_fair1m(tmp_path):
    """Objects are in `objects`, with a class in `possibleresult` and five corners, the last of which is the first."""
    corners = np.array(TURNED).reshape(4, 2)
    points = "".join(f"<point>{x},{y}</point>" for x, y in [*corners, corners[0]])
    objects = "<object><coordinate>pixel</coordinate><type>rectangle</type><possibleresult><name>Tugboat</name>"
    objects += f"<probability>1</probability></possibleresult><points>{points}</points></object>"
    write_pair(tmp_path / "images", tmp_path / "Annotations" / "a.xml", xml([f"<objects>{objects}</objects>"]))
    done = convert("voc", tmp_path, tmp_path / "out.json")
    assert (done.objects, done.account.objects.changed) == ({"Tugboat": 1}, {})
    image = read_coco(tmp_path / "out.json", images=done.image_folder).images[0]
    np.testing.assert_allclose(image.boxes, [[*corners.min(axis=0), *corners.max(axis=0)]], rtol=1e-5)
    np.testing.assert_allclose(image.oriented, from_corners(corners[None]), atol=1e-2)


@pytest.mark.parametrize(
    "broken",
    ["<polygon><x1>5</x1><y1>6</y1></polygon>", "<robndbox><cx>5</cx></robndbox>", "<points><point>5</point></points>"],
)
def test_an_object_with_an_incomplete_polygon_is_upright_and_counts_as_changed(tmp_path, broken):
    objects = [voc_object("tug"), voc_object("tug", (30, 6, 40, 16), extra=broken)]
    write_pair(tmp_path / "JPEGImages", tmp_path / "Annotations" / "a.xml", xml(objects))
    done = convert("voc", tmp_path, tmp_path / "out.json")
    assert done.account.objects.changed == {"polygon_without_area": 1}
    assert done.account.objects.kept == 1


def test_a_yolo_line_with_an_angle_is_no_box_with_a_score(tmp_path):
    lines = "0 0.5 0.5 0.2 0.2 0.9\n0 0.5 0.5 0.2 0.2 1.2\n0 0.5 0.5 0.2 0.2 -30\n"
    write_pair(tmp_path, tmp_path / "a.txt", lines)
    (tmp_path / "obj.names").write_text("tug\n")
    done = convert("yolo", tmp_path, tmp_path / "out.json")
    assert done.objects == {"tug": 1}
    assert done.account.objects.dropped == {"annotations_malformed": 2}


def test_lists_of_images_in_data_yaml(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "train.txt").write_text("./images/b.png\nimages/gone.png\n/etc/gone.png\n")
    (tmp_path / "data.yaml").write_text("names: [tug]\ntrain: train.txt\nval: valid/images\n")
    done = convert("yolo", tmp_path, tmp_path / "out.json", split="train")
    assert (done.images, done.objects, done.account.images.received) == (1, {"tug": 1}, 3)
    with pytest.raises(DataError, match="valid/images"):
        convert("yolo", tmp_path, tmp_path / "out.json")


@pytest.mark.parametrize("source_format", ["yolo", "dota", "voc", "coco"])
def test_refuses_a_data_set_without_images_or_label_files(tmp_path, source_format):
    for name in ("images", "labels", "JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("tug\n")
    (tmp_path / "a.json").write_text(json.dumps(coco(images=[], annotations=[])))
    with pytest.raises(DataError, match="has no image"):
        convert(source_format, tmp_path / "a.json" if source_format == "coco" else tmp_path, tmp_path / "out.json")
    if source_format in {"yolo", "dota"}:
        write_image(tmp_path / "images" / "a.png")
        with pytest.raises(DataError, match="has no label file"):
            convert(source_format, tmp_path, tmp_path / "out.json")


def test_lines_of_class_names(tmp_path):
    root = yolo(tmp_path, "1 0.5 0.5 0.2 0.2\n")
    (root / "classes.txt").write_text("tug\n\nbarge\n")
    with pytest.raises(DataError, match="empty line 2"):
        convert("yolo", root, tmp_path / "out.json")
    (root / "classes.txt").write_text("tug\ntug\n\n")
    assert convert("yolo", root, tmp_path / "out.json").notes == ("Classes of one name are merged: tug.",)


def test_no_copy_of_annotations_that_are_not_a_list(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(coco(annotations={"1": {}})))
    out = ["--out", str(tmp_path / "check"), "--fix", str(tmp_path / "fix")]
    assert main(["data", "check", str(tmp_path / "a.json"), *out]) == 2
    assert not (tmp_path / "fix").exists()


def test_a_coco_data_set_behind_a_link(tmp_path, write_data_set):
    write_data_set(tmp_path / "disk", "train")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    done = convert("coco", tmp_path / "data" / "train.json", tmp_path / "out.json")
    names = [image["file_name"] for image in json.loads((tmp_path / "out.json").read_text())["images"]]
    assert names == [
        image["file_name"] for image in json.loads((tmp_path / "disk" / "train.json").read_text())["images"]
    ]
    assert all(image.path.is_file() for image in read_coco(tmp_path / "out.json", images=done.image_folder).images)


@pytest.mark.shared_data
def test_oriented_labels_of_fair1m_are_kept(shared_data, tmp_path):
    source = shared_data / "fair1m_mini" / "train.json"
    done = convert("coco", source, tmp_path / "out.json")
    assert done.account.objects.left_out == 0
    data = read_coco(tmp_path / "out.json", images=done.image_folder)
    data.require_oriented()
    stated = {one["id"]: one for one in json.loads(source.read_text())["annotations"]}
    written = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert all(one["segmentation"] == stated[one["id"]]["segmentation"] for one in written)
    sides = {image.id: shapely.box(0, 0, image.size[1], image.size[0]) for image in data.images}
    boxes = (box for image in data.images if image.oriented is not None for box in image.oriented)
    by_image = sorted(written, key=lambda one: [image.id for image in data.images].index(one["image_id"]))
    for one, box in zip(by_image, boxes, strict=True):
        shown = shapely.MultiPoint(np.reshape(one["segmentation"], (4, 2))).convex_hull.intersection(
            sides[one["image_id"]]
        )
        assert shapely.Polygon(corners(box[None])[0]).buffer(0.02).contains(shown)


def test_an_image_of_a_yolo_list_that_is_elsewhere_is_missing(tmp_path):
    root = yolo(tmp_path / "data", "0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("names: [tug, ferry]\ntrain: train.txt\n")
    (root / "train.txt").write_text("images/a.png\n/home/other/images/b.png\n")
    account = convert("yolo", root, tmp_path / "out.json").account.images
    assert (account.written, account.dropped) == (1, {"files_missing": 1})


def test_metadata_of_gdal_is_no_voc_label(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(xml([voc_object("tug")]))
    (tmp_path / "Annotations" / "a.aux.xml").write_text("<PAMDataset/>")
    write_image(tmp_path / "JPEGImages" / "a.png")
    images = convert("voc", tmp_path, tmp_path / "out.json").account.images
    assert (images.received, images.written) == (1, 1)


def test_the_source_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main(["data", "convert", "coco", str(tmp_path / "a.json"), "--out", str(tmp_path / "a.json")]) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == "{}"

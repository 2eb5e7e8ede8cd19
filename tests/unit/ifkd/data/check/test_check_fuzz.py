"""Fuzzing: randomly changed annotations and images give findings or an error message, never a traceback.

`make fuzz` changes 2,000 files, the test suite a tenth of them, with fixed seeds.
"""

import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from fakes.scrambled_files import FILES, scrambled_bytes, scrambled_content
from PIL import Image

from deploy.cli.main import main
from ifkd.core.errors import DataError
from ifkd.data.coco import read_coco
from ifkd.imagery.image_files import read_image

GROUPS = 4
COCO_FILES, IMAGES_PER_FORMAT, FILES_PER_FORMAT = (FILES * 2 // 5 // GROUPS, FILES * 2 // 5 // 5, FILES // 5 // 5)
"""COCO files per group, images per image format, annotation files per other format."""


def encoded(pixels, ending):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format={"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()))
    return stream.getvalue()


def is_valid(path, images=None, *, may_be_elsewhere=False):
    """Return whether training can read a file and its images, which may all be elsewhere; only DataError is raised."""
    try:
        found = read_coco(path, images=images)
        if may_be_elsewhere and not any(image.path.exists() for image in found.images):
            return True
        for image in found.images:
            read_image(image.path, size=image.size)
    except DataError:
        return False
    return True


def run(path, folder, capsys):
    """Check and fix a file, assert that the fixed copy is valid, and return the exit code."""
    fixed = folder / "fixed"
    code = main(["data", "check", f"train={path}", "--out", str(folder / "out"), "--fix", str(fixed)])
    captured = capsys.readouterr()
    assert code in {0, 1, 2}
    assert "Traceback" not in captured.err
    if code == 2:
        assert not fixed.exists()
        return code
    record = json.loads((folder / "out" / "check.json").read_text())
    assert is_valid(fixed / "train.json", Path(record["fixed"]["images"]))
    assert_account(fixed / "train.json")
    assert "<script>alert" not in (folder / "out" / "check.html").read_text()
    return code


@pytest.mark.parametrize("group", range(GROUPS))
def test_scrambled_annotations(tmp_path, write_data_set, capsys, group):
    source = write_data_set(tmp_path / "data", "train", images=3, size=(48, 64))
    content = json.loads(source.read_text())
    rng = random.Random(group)  # noqa: S311 - a fixed seed
    codes = []
    for index in range(COCO_FILES):
        path = source.parent / f"scrambled_{index}.json"
        if rng.random() < 0.75:
            path.write_text(scrambled_content(content, rng))
        else:
            path.write_bytes(scrambled_bytes(source.read_bytes(), rng))
        is_valid(path)
        codes.append(run(path, tmp_path / str(index), capsys))
    assert {1, 2} <= set(codes)


WORDS = ("nan", "inf", "-inf", "1e999", "-1", "0", "3.5", "7", "1e30", "x", "", "../../a", "\x00", "ä", "0x10", "1_0")
VOC = """<annotation><filename>a.png</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>Dock</name><difficult>0</difficult><level_0>2</level_0><level_1>4</level_1><level_2>25</level_2>
<level_3>50</level_3><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>16</ymax></bndbox></object>
</annotation>"""
AIRCRAFT = VOC.replace("Dock", "A220")
COCO_LABELS = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 10], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [30, 20, 20, 10], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "plane", "supercategory": "ship"}],
    }
)
YOLO_LABELS = "0 0.4 0.5 0.2 0.1\n1 0.25 0.25 0.3 0.2\n0 0.1 0.1 0.4 0.1 0.4 0.3 0.2 0.4\n"
LABELS = {
    "voc": ("JPEGImages", "Annotations/a.xml", VOC),
    "shiprsimagenet": ("JPEGImages", "Annotations/a.xml", VOC),
    "sar-aircraft": ("JPEGImages", "Annotations/a.xml", AIRCRAFT),
    "yolo": ("images", "labels/a.txt", YOLO_LABELS),
    "yolo data.yaml": ("images", "data.yaml", "path: .\ntrain: ../images\nval: images\nnc: 2\nnames: [ship, plane]\n"),
    "dota": ("images", "labelTxt/a.txt", "gsd:0.5\n5 5 20 8 18 16 3 13 ship 0\n30 5 40 5 40 15 30 15 plane 1\n"),
    "coco": ("images", "a.json", COCO_LABELS),
}
"""Format, perhaps with the name of a file -> image folder, the file that is scrambled, and its text."""


def scrambled_words(text, rng):
    """Return text with a few words changed, repeated or removed."""
    parts = re.split(r"(\s+|[<>/])", text)
    for _ in range(rng.randint(1, 3)):
        position, action = rng.randrange(len(parts)), rng.random()
        if action < 0.8:
            position = rng.choice([index for index, part in enumerate(parts) if re.search(r"\w", part)] or [0])
            parts[position] = rng.choice(WORDS)
        elif action < 0.9:
            del parts[position]
            parts = parts or [""]
        else:
            parts.insert(position, parts[position])
    return "".join(parts)


@pytest.mark.parametrize("labels", LABELS)
def test_scrambled_annotations_of_other_formats(tmp_path, capsys, labels):
    folder, name, original = LABELS[labels]
    source_format = labels.split()[0]
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (tmp_path / folder).mkdir()
    Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.txt").write_text("ship\nplane\n")
    if labels == "yolo data.yaml":
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text(YOLO_LABELS)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    rng = random.Random(labels)  # noqa: S311 - a fixed seed
    codes = []
    for index in range(FILES_PER_FORMAT):
        if source_format == "coco" and rng.random() < 0.7:
            content = scrambled_content(json.loads(original), rng).encode()
        else:
            content = scrambled_words(original, rng).encode() if rng.random() < 0.8 else original.encode()
        (tmp_path / name).write_bytes(content if rng.random() < 0.8 else scrambled_bytes(content, rng))
        out = tmp_path / f"{index}.out"
        source = tmp_path / name if source_format == "coco" else tmp_path
        level = ["--class-level", str(rng.randrange(4))] if source_format == "shiprsimagenet" else []
        codes.append(main(["data", "--json", "convert", source_format, str(source), "--out", str(out), *level]))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert out.exists() == (codes[-1] in {0, 1})
        assert codes[-1] in {0, 1, 2}
        if out.exists():
            folder_of_images = Path(json.loads(captured.out)["image_folder"])
            assert is_valid(out, folder_of_images, may_be_elsewhere=source_format == "coco")
            assert_account(out)
    assert set(codes) & {0, 1}


def assert_account(path):
    """Assert that a file has the images and objects that its account states, and that the account sums up."""
    content = json.loads(path.read_text())
    for name, entries in (("images", content["images"]), ("objects", content["annotations"])):
        tally = content["info"]["account"][name]
        written = tally["kept"] + sum(tally["changed"].values())
        assert written == len(entries)
        assert tally["received"] == written + sum(tally["dropped"].values())


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif"])
def test_scrambled_images(tmp_path, capsys, ending):
    (tmp_path / "images").mkdir()
    rng = random.Random(ending)  # noqa: S311 - a fixed seed
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    original = [encoded(pixels, ending), encoded(pixels[:, :, 0], ending)]
    entries = []
    for index in range(IMAGES_PER_FORMAT):
        name = f"{index}.{ending}"
        (tmp_path / "images" / name).write_bytes(scrambled_bytes(rng.choice(original), rng))
        entries.append({"id": index + 1, "file_name": name, "height": 40, "width": 48})
    boxes = [
        {"id": one["id"], "image_id": one["id"], "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0}
        for one in entries
    ]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    assert run(path, tmp_path, capsys) == 1

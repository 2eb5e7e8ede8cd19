"""Scrambled annotations and images end in findings or in one line, never in a traceback.

`make fuzz` scrambles 2,000 files, the suite a tenth of them; always the same ones.
"""

import copy
import io
import json
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.cli.main import main
from ifkd.core.errors import DataError
from ifkd.data.coco import read_coco
from ifkd.imagery.image_files import read_image

FILES = int(os.environ.get("IFKD_FUZZED_FILES", "200"))
GROUPS = 4
COCO_FILES, IMAGES_OF_FORM, FILES_OF_FORM = (FILES * 2 // 5 // GROUPS, FILES * 2 // 5 // 5, FILES // 5 // 5)
"""COCO files in each group, images in each format, annotation files in each of the other forms."""
JUNK = (
    None,
    True,
    -1,
    0,
    1,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    10**30,
    10**400,
    0.5,
    "",
    "a",
    "7",
    "../a.png",
    "/etc/passwd",
    "\x00",
    "a\nb\x1b[31m",
    "\ud800",
    "x" * 5000,
    "<script>alert(1)</script>",
    [],
    [1, 2],
    [[[[]]]],
    {},
    {"id": 1},
)


def nodes(value, path=()):
    """Yield the paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from nodes(inner, (*path, key))


def scrambled_content(content, dice):
    """Return JSON text of a changed copy."""
    content = json.loads(json.dumps(content))
    for _ in range(dice.randint(1, 6)):
        places = list(nodes(content))
        if not places:
            break
        *parents, last = dice.choice(places)
        holder = content
        for key in parents:
            holder = holder[key]
        what = dice.random()
        if what < 0.6:
            holder[last] = copy.deepcopy(dice.choice(JUNK))
        elif what < 0.75:
            del holder[last]
        elif isinstance(holder, list):
            holder.append(holder[last])
        else:
            holder[dice.choice(["id", "bbox", "iscrowd", "scene", "area"])] = copy.deepcopy(dice.choice(JUNK))
    return json.dumps(content)


def scrambled_bytes(whole, dice):
    """Return bytes with some changed, cut off, doubled or put in."""
    content = bytearray(whole)
    for _ in range(dice.randint(1, 20)):
        if not content:
            break
        place, what = dice.randrange(len(content)), dice.random()
        if what < 0.7:
            content[place] = dice.randrange(256)
        elif what < 0.8:
            del content[place : place + dice.randint(1, 40)]
        elif what < 0.9:
            content[place:place] = content[place : place + dice.randint(1, 40)]
        elif what < 0.93:
            del content[place:]
    return bytes(content)


def encoded(pixels, ending):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format={"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()))
    return stream.getvalue()


def strict_reader_holds(path, images=None):
    """Read as training does; only DataError may come of it."""
    try:
        found = read_coco(path, images=images)
        for image in found.images:
            read_image(image.path, size=image.size)
    except DataError:
        return False
    return True


def run(path, folder, capsys):
    """Check a file and clean it; a cleaned copy must be one that the strict reader takes. Returns the exit code."""
    clean = folder / "clean"
    code = main(["data", "check", f"train={path}", "--out", str(folder / "out"), "--fix", str(clean)])
    told = capsys.readouterr()
    assert code in {0, 1, 2}
    assert "Traceback" not in told.err
    if code == 2:
        assert not clean.exists()
        return code
    record = json.loads((folder / "out" / "check.json").read_text())
    assert strict_reader_holds(clean / "train.json", Path(record["cleaned"]["images"]))
    assert "<script>alert" not in (folder / "out" / "check.html").read_text()
    return code


@pytest.mark.parametrize("group", range(GROUPS))
def test_scrambled_annotations(tmp_path, write_data_set, capsys, group):
    source = write_data_set(tmp_path / "data", "train", images=3, size=(48, 64))
    content = json.loads(source.read_text())
    dice = random.Random(group)  # noqa: S311 - a fixed walk through mistakes
    codes = []
    for index in range(COCO_FILES):
        path = source.parent / f"scrambled_{index}.json"
        if dice.random() < 0.75:
            path.write_text(scrambled_content(content, dice))
        else:
            path.write_bytes(scrambled_bytes(source.read_bytes(), dice))
        strict_reader_holds(path)
        codes.append(run(path, tmp_path / str(index), capsys))
    assert {1, 2} <= set(codes)


WORDS = ("nan", "inf", "-inf", "1e999", "-1", "0", "3.5", "7", "1e30", "x", "", "../../a", "\x00", "ä", "0x10", "1_0")
VOC = """<annotation><filename>a.png</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>Dock</name><difficult>0</difficult><level_0>2</level_0><level_1>4</level_1><level_2>25</level_2>
<level_3>50</level_3><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>16</ymax></bndbox></object>
</annotation>"""
AIRCRAFT = VOC.replace("Dock", "A220")
LABELS = {
    "voc": ("JPEGImages", "Annotations/a.xml", VOC),
    "shiprsimagenet": ("JPEGImages", "Annotations/a.xml", VOC),
    "sar-aircraft": ("JPEGImages", "Annotations/a.xml", AIRCRAFT),
    "yolo": ("images", "labels/a.txt", "0 0.4 0.5 0.2 0.1\n1 0.25 0.25 0.3 0.2\n"),
    "dota": ("images", "labelTxt/a.txt", "gsd:0.5\n5 5 20 8 18 16 3 13 ship 0\n30 5 40 5 40 15 30 15 plane 1\n"),
}
"""Of each form: the folder of its images, an annotation file, and what it says."""


def scrambled_words(text, dice):
    """Return text with a few words or numbers changed, doubled or left out."""
    parts = re.split(r"(\s+|[<>/])", text)
    for _ in range(dice.randint(1, 3)):
        place, what = dice.randrange(len(parts)), dice.random()
        if what < 0.8:
            place = dice.choice([index for index, part in enumerate(parts) if re.search(r"\w", part)] or [0])
            parts[place] = dice.choice(WORDS)
        elif what < 0.9:
            del parts[place]
            parts = parts or [""]
        else:
            parts.insert(place, parts[place])
    return "".join(parts)


@pytest.mark.parametrize("form", LABELS)
def test_scrambled_annotations_of_other_forms(tmp_path, capsys, form):
    folder, name, whole = LABELS[form]
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (tmp_path / folder).mkdir()
    Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.txt").write_text("ship\nplane\n")
    (tmp_path / name).parent.mkdir()
    dice = random.Random(form)  # noqa: S311 - a fixed walk through mistakes
    codes = []
    for index in range(FILES_OF_FORM):
        content = scrambled_words(whole, dice).encode() if dice.random() < 0.8 else whole.encode()
        (tmp_path / name).write_bytes(content if dice.random() < 0.8 else scrambled_bytes(content, dice))
        out = tmp_path / f"{index}.json"
        level = ["--class-level", str(dice.randrange(4))] if form == "shiprsimagenet" else []
        codes.append(main(["data", "convert", form, str(tmp_path), "--out", str(out), *level]))
        assert "Traceback" not in capsys.readouterr().err
        assert out.exists() == (codes[-1] == 0)
        assert codes[-1] in {0, 2}
        if codes[-1] == 0:
            assert strict_reader_holds(out, tmp_path / folder)
    assert set(codes) == {0, 2}


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif"])
def test_scrambled_images(tmp_path, capsys, ending):
    (tmp_path / "images").mkdir()
    dice = random.Random(ending)  # noqa: S311 - a fixed walk through mistakes
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    whole = [encoded(pixels, ending), encoded(pixels[:, :, 0], ending)]
    entries = []
    for index in range(IMAGES_OF_FORM):
        name = f"{index}.{ending}"
        (tmp_path / "images" / name).write_bytes(scrambled_bytes(dice.choice(whole), dice))
        entries.append({"id": index + 1, "file_name": name, "height": 40, "width": 48})
    boxes = [
        {"id": one["id"], "image_id": one["id"], "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0}
        for one in entries
    ]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    assert run(path, tmp_path, capsys) == 1

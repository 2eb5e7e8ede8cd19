"""Scrambled annotations and images end in findings or in one line, never in a traceback.

`IFKD_FUZZED_FILES=2000 python -m pytest tests/unit/ifkd/test_data_check_fuzz.py` scrambles more than the suite does.
"""

import io
import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifkd.cli import main
from ifkd.data.coco import read_coco
from ifkd.data.imagery import read_image
from ifkd.errors import DataError

FILES = int(os.environ.get("IFKD_FUZZED_FILES", "240"))
"""Half of them annotation files, half of them images."""
GROUPS = 8
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
            holder[last] = dice.choice(JUNK)
        elif what < 0.75:
            del holder[last]
        elif isinstance(holder, list):
            holder.append(holder[last])
        else:
            holder[dice.choice(["id", "bbox", "iscrowd", "scene", "area"])] = dice.choice(JUNK)
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
    for index in range(FILES // 2 // GROUPS):
        path = source.parent / f"scrambled_{index}.json"
        if dice.random() < 0.75:
            path.write_text(scrambled_content(content, dice))
        else:
            path.write_bytes(scrambled_bytes(source.read_bytes(), dice))
        strict_reader_holds(path)
        codes.append(run(path, tmp_path / str(index), capsys))
    assert {1, 2} <= set(codes)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif"])
def test_scrambled_images(tmp_path, capsys, ending):
    (tmp_path / "images").mkdir()
    dice = random.Random(ending)  # noqa: S311 - a fixed walk through mistakes
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    whole = [encoded(pixels, ending), encoded(pixels[:, :, 0], ending)]
    entries = []
    for index in range(FILES // 2 // 5):
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

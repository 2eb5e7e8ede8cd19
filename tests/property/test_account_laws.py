"""Accounts of conversions, fixed copies and tilings: everything that came in is unchanged, changed or left out."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from ifkd.core.errors import DataError
from ifkd.data.account import Account
from ifkd.data.check.check import CheckPlan, CheckSource, check
from ifkd.data.check.fix import write_fixed
from ifkd.data.readers.convert import convert
from ifkd.data.slicing.slice_dataset import slice_dataset
from ifkd.data.slicing.tile_plan import TileRules

SIZE = (24, 32)
NAMES = ("a", "b", "sub/c", "A")
LAWS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.sampled_from([0, 1, 5, 10, 40, -3, 0.5, math.nan, "7", "x", None])
boxes = st.one_of(
    st.tuples(st.integers(0, 20), st.integers(0, 12), st.integers(1, 10), st.integers(1, 10)).map(list),
    st.lists(numbers, min_size=3, max_size=5),
)
words = st.one_of(st.sampled_from(["0", "1", "0.5", "0.2", "0.9", "7", "nan", "x", "-1"]))
lines = st.lists(st.lists(words, min_size=4, max_size=9).map(" ".join), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a few images, two of them equal."""
    images = tmp_path_factory.mktemp("data") / "images"
    for index, name in enumerate(NAMES):
        path = images / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(max(index, 1)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return images.parent


def assert_complete(account: Account, images: int, objects: int, content: dict[str, Any]) -> None:
    received = (account.images.received, account.objects.received)
    assert received == (images, objects)
    assert (account.images.written, account.objects.written) == (len(content["images"]), len(content["annotations"]))
    for tally in (account.images, account.objects):
        assert tally.received == tally.kept + sum(tally.changed.values()) + sum(tally.dropped.values())
        assert min([tally.kept, *tally.changed.values(), *tally.dropped.values()]) >= 0


@st.composite
def coco(draw: Any) -> dict[str, Any]:
    """Draw a COCO file with usable and unusable entries."""
    names = st.sampled_from([*(f"{name}.png" for name in NAMES), "sub\\c.png", "gone.png", "", None])
    heights = st.sampled_from([24, 24, "24", 25, 90, None])
    images = [
        {
            "id": draw(st.sampled_from([n, str(n), 1, None])),
            "file_name": draw(names),
            "height": draw(heights),
            "width": 32,
        }
        for n in range(1, draw(st.integers(1, 5)) + 1)
    ]
    annotations: list[Any] = [
        {
            "id": draw(st.sampled_from([n, 1])),
            "image_id": draw(st.sampled_from([1, 2, "2", 3, 9])),
            "category_id": draw(st.sampled_from([1, "1", 4])),
            "bbox": draw(boxes),
            "iscrowd": draw(st.sampled_from([0, 1, "0", "maybe"])),
        }
        for n in range(1, draw(st.integers(0, 6)) + 1)
    ]
    annotations += draw(st.lists(st.sampled_from([None, 3, "text"]), max_size=1))
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}


@LAWS
@given(content=coco())
def test_fixed_copies_and_conversions_of_coco_files(folder: Path, content: dict[str, Any], tmp_path: Path) -> None:
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    counts = len(content["images"]), len(content["annotations"])
    target = Path(tempfile.mkdtemp(dir=tmp_path))
    refusal = ""
    try:
        record = write_fixed(check(CheckPlan((CheckSource("train", path),)), workers=1), target)
    except DataError as error:
        refusal = error.problem
    else:
        assert_complete(record.splits[0].account, *counts, json.loads((target / "train.json").read_text()))
    assert not refusal or "another form" in refusal or "No image file is found" in refusal
    out = tmp_path / "converted"
    out.unlink(missing_ok=True)
    try:
        done = convert("coco", path, out)
    except DataError:
        assert not out.exists()
    else:
        assert_complete(done.account, *counts, json.loads(out.read_text()))


@LAWS
@given(
    labels=st.dictionaries(st.sampled_from([*NAMES, "gone"]), lines, min_size=1),
    source=st.sampled_from(["yolo", "dota"]),
)
def test_conversions_of_text_labels(folder: Path, labels: dict[str, list[str]], source: str, tmp_path: Path) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    (root / "images").symlink_to(folder / "images")
    (root / "classes.txt").write_text("ship\nplane\n")
    for name, text in labels.items():
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(text))
    out = root / "out.json"
    try:
        done = convert("yolo" if source == "yolo" else "dota", root, out)
    except DataError:
        assert not out.exists()
    else:
        images = len(NAMES) + ("gone" in labels)
        assert_complete(done.account, images, sum(map(len, labels.values())), json.loads(out.read_text()))


@LAWS
@given(
    rectangles=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 12), st.integers(1, 10), st.integers(1, 10)), max_size=6
    ),
    rules=st.builds(
        TileRules,
        tile_px=st.integers(8, 40),
        overlap_px=st.integers(0, 7),
        min_visibility=st.sampled_from([0.0, 0.4, 1.0]),
        cut_objects=st.sampled_from(["ignore", "drop"]),
        max_empty_fraction=st.sampled_from([0.0, 0.5, 1.0]),
    ),
)
def test_tilings(folder: Path, rectangles: list[tuple[int, ...]], rules: TileRules, tmp_path: Path) -> None:
    images = [
        {"id": n, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]} for n, name in enumerate(NAMES)
    ]
    annotations = [
        {"id": n, "image_id": n % 3, "category_id": 1, "bbox": list(box), "iscrowd": n % 4 == 3}
        for n, box in enumerate(rectangles)
    ]
    path = folder / "scenes.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    path.write_text(json.dumps(content))
    record = {}
    try:
        record = slice_dataset(path, tmp_path / "tiles", rules, force=True)
    except DataError:
        assume(record)  # no tile has an object
    account = Account(**record["contents"]["account"])
    tiles = json.loads((tmp_path / "tiles" / "tiles.json").read_text())
    written = {
        "images": list({one["source"]["id"] for one in tiles["images"]}),
        "annotations": list({one["source_annotation"] for one in tiles["annotations"]}),
    }
    assert_complete(account, len(images), len(annotations), written)

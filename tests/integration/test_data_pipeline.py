"""Convert, check and train on miniatures of the two benchmarks, in the layout of their authors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from conftest import tiny_recipe
from PIL import Image

from deploy.cli.main import main
from ifkd.data.readers.ship_classes import LEVEL_NAMES
from ifkd.models.checkpoint import load_checkpoint

SIZE = (64, 96)
SHIPS = {"Arleigh Burke DD": (1, 2, 6, 11), "Dock": (2, 4, 25, 50)}
"""Name -> its class id at each level."""
AIRCRAFT = ("A220", "Boeing787")
AIRCRAFT_CLASSES = ["A220", "A320/321", "A330", "ARJ21", "Boeing737", "Boeing787", "other"]
SPLITS = {"train": 8, "val": 4, "test": 4}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark's folder."""

    format: str
    root: Path
    images: Path
    lists: dict[str, str]
    """Split of the recipe -> image list of the benchmark."""
    classes: list[str]
    counts: dict[str, int]
    """Objects of each class in the training split."""


def boxes_of(seed: int) -> list[tuple[int, int, int, int]]:
    """Return x1, y1, x2, y2 of an image's two objects, one in its left half and one in its right."""
    random = np.random.default_rng(seed)
    found = []
    for left in (0, SIZE[1] // 2):
        width, height = random.integers(16, 40, 2).tolist()
        x, y = left + int(random.integers(0, 48 - width + 1)), int(random.integers(0, SIZE[0] - height + 1))
        found.append((x, y, x + width, y + height))
    return found


def write_image(path: Path, *, gray: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(20, 90, (*SIZE, 3), dtype=np.uint8)
    for x1, y1, x2, y2 in boxes_of(seed):
        pixels[y1:y2, x1:x2] = random.integers(120, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if gray else pixels).save(path)


def xml(names: Sequence[str], *, seed: int) -> str:
    objects = ""
    for name, box in zip(names, boxes_of(seed), strict=True):
        edges = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        levels = "".join(f"<level_{i}>{n}</level_{i}>" for i, n in enumerate(SHIPS.get(name, ())))
        objects += f"<object><name>{name}</name><difficult>0</difficult>{levels}<bndbox>{edges}</bndbox></object>"
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>x</filename>{size}{objects}</annotation>"


def write(voc: Path, annotations: str, lists: Path, suffix: str, names: Sequence[str]) -> None:
    (voc / annotations).mkdir(parents=True)
    lists.mkdir(parents=True)
    number = 0
    for split, count in SPLITS.items():
        stems = [f"{100000001 + number + index}" for index in range(count)]
        for stem in stems:
            write_image(voc / "JPEGImages" / f"{stem}{suffix}", gray=suffix == ".jpg", seed=int(stem))
            (voc / annotations / f"{stem}.xml").write_text(xml(names, seed=int(stem)))
        listed = [f"{stem}.bmp" if suffix == ".bmp" else stem for stem in stems]
        (lists / f"{split}.txt").write_text("\n".join(listed) + "\n")
        number += count


@pytest.fixture
def ship_rs_image_net(tmp_path: Path) -> Benchmark:
    root = tmp_path / "ShipRSImageNet_V1"
    voc = root / "VOC_Format"
    write(voc, "Annotations", voc / "ImageSets", ".bmp", tuple(SHIPS))
    lists = {"train": "train", "validation": "val", "test": "test"}
    counts = {"Arleigh Burke DD": 8, "Dock": 8}
    return Benchmark("shiprsimagenet", root, voc / "JPEGImages", lists, list(LEVEL_NAMES[3]), counts)


@pytest.fixture
def sar_aircraft(tmp_path: Path) -> Benchmark:
    root = tmp_path / "SAR-AIRcraft-1.0"
    write(root, "Annotations", root / "ImageSets" / "Main", ".jpg", AIRCRAFT)
    lists = {"train": "train", "validation": "val", "test": "test"}
    counts = dict.fromkeys(AIRCRAFT, 8)
    return Benchmark("sar-aircraft", root, root / "JPEGImages", lists, AIRCRAFT_CLASSES, counts)


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["ship_rs_image_net", "sar_aircraft"])
def test_benchmark_folder_to_checkpoint(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark: Benchmark = request.getfixturevalue(name)
    for split, listed in benchmark.lists.items():
        words = ["--out", str(tmp_path / f"{split}.json"), "--split", listed]
        assert main(["data", "convert", benchmark.format, str(benchmark.root), *words, "--json"]) == 0
        capsys.readouterr()
    values = tiny_recipe(tmp_path)
    values["data"].update(validation="validation.json", test="test.json", images=str(benchmark.images))
    values["student"]["training"].update(epochs=1)
    path = tmp_path / "benchmark.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")

    assert main(["data", "check", str(path), "--out", str(tmp_path / "check"), "--json"]) == 1
    record = printed(capsys)
    assert {(one["kind"], one["severity"]) for one in record["findings"]} == {("classes_without_objects", "warning")}
    assert record["classes"] == benchmark.classes
    assert [(one["name"], one["images"]) for one in record["splits"]] == [("train", 8), ("validation", 4), ("test", 4)]
    assert {label: n for label, n in record["splits"][0]["per_class"].items() if n} == benchmark.counts

    assert main(["train", str(path), "--role", "student", "--out", str(tmp_path / "run"), "--json"]) == 0
    assert printed(capsys)["iterations"] == 2
    learned = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert list(learned.meta.classes) == benchmark.classes
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    totals = [step["total"] for step in steps if "total" in step]
    assert len(totals) == 2
    assert np.isfinite(totals).all()

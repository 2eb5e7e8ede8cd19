"""COCO files: reading, refused mistakes, a round trip, and classes matched by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from ifkd.core.detections import Detections
from ifkd.core.errors import DataError
from ifkd.data.coco import align_classes, coco_results, read_coco

Change = Callable[[dict[str, Any]], None]


def content() -> dict[str, Any]:
    """Two images of 40x30 (width x height), classes with gaps in their ids and out of order."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40, "scene": "harbor"},
            {"id": 5, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 20, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0.5, 0.5, 3.25, 4], "area": 13},
            {"id": 3, "image_id": 7, "category_id": 9, "bbox": [20, 20, 10, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 20, "name": "tug"}, {"id": 4, "name": "barge"}, {"id": 9, "name": "ferry"}],
    }


def write(folder: Path, change: Change | None = None) -> Path:
    values = content()
    if change is not None:
        change(values)
    (folder / "set.json").write_text(json.dumps(values))
    return folder / "set.json"


def problem(folder: Path, change: Change, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_coco(write(folder, change), **options)
    return str(caught.value)


def test_reads_images_boxes_and_classes(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path))
    assert dataset.classes == ("barge", "ferry", "tug")
    assert dataset.category_ids == (4, 9, 20)
    first, second = dataset.images
    assert (first.id, first.size, first.scene) == (7, (30, 40), "harbor")
    assert first.path == tmp_path / "images" / "a.png"
    assert first.boxes.tolist() == [[1, 2, 11, 7], [0.5, 0.5, 3.75, 4.5], [20, 20, 30, 25]]
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [2, 0, 1]
    assert first.ignore.tolist() == [False, False, True]
    assert second.boxes.shape == (0, 4)
    assert second.labels.dtype == np.int64
    assert second.scene == "b.png"
    assert dataset.objects_per_class() == {"barge": 1, "ferry": 0, "tug": 1}


def test_image_folder_elsewhere(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path), images=tmp_path / "elsewhere")
    assert dataset.images[0].path == tmp_path / "elsewhere" / "a.png"


def test_merge_classes_counts_objects_as_another_class(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path), merge_classes={"tug": "barge"})
    assert dataset.classes == ("barge", "ferry")
    assert dataset.category_ids == (4, 9)
    assert dataset.images[0].labels.tolist() == [0, 0, 1]
    assert dataset.objects_per_class() == {"barge": 2, "ferry": 0}


def test_merge_classes_refuses_unknown_and_chained_classes(tmp_path: Path) -> None:
    assert "merge_classes names ['yacht']" in problem(tmp_path, lambda _: None, merge_classes={"tug": "yacht"})
    chain = {"tug": "barge", "barge": "ferry"}
    assert "merges into ['barge'], which it also merges" in problem(tmp_path, lambda _: None, merge_classes=chain)


@pytest.mark.parametrize("side", [0, -1e308, 2**24 + 1, 10**400])
def test_refuses_an_invalid_image_size(tmp_path: Path, side: float) -> None:
    message = problem(tmp_path, lambda values: values["images"][0].update(width=side))
    assert "a.png has height 30 and width" in message
    assert "between 1 and 16777216" in message


def test_lists_every_mistake_with_its_annotation(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["annotations"][0]["bbox"] = [35, 2, 10, 5]
        values["annotations"][1]["category_id"] = 3
        values["annotations"][2]["image_id"] = 6
        values["images"].append(values["images"][1])

    message = problem(tmp_path, change)
    assert "set.json has 4 mistakes:" in message
    assert "2 images have the id 5" in message
    assert "annotation 1 of a.png has the box [35.0, 2.0, 45.0, 7.0], which is outside its image of 40x30" in message
    assert "annotation 2 has category_id 3; the file's are [4, 9, 20]" in message
    assert "annotation 3 belongs to image 6, which the file does not list" in message


def test_shortens_a_long_list_of_mistakes(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["annotations"] = [{**values["annotations"][0], "id": n, "category_id": 1} for n in range(25)]

    message = problem(tmp_path, change)
    assert "25 mistakes" in message
    assert "… and 15 more" in message
    assert message.count("\n") == 11


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([1, 2, 0, 5], "has no area"),
        ([1, 2, 5, -1], "has no area"),
        ([float("nan"), 2, 5, 5], "is not finite"),
        ([1, 2, float("inf"), 5], "is not finite"),
        ([-3, 2, 5, 5], "is outside its image"),
        ([1, 26, 5, 7], "is outside its image"),
        ([40, 5, 1, 5], "is outside its image"),
        ([-1.5, 5, 1, 5], "is outside its image"),
    ],
)
def test_refuses_an_invalid_box(tmp_path: Path, box: list[float], fault: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values["annotations"][0]["bbox"] = box

    assert fault in problem(tmp_path, change)


def test_clips_a_box_slightly_across_the_border(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["annotations"][0]["bbox"] = [-1, -2, 43, 34]

    assert read_coco(write(tmp_path, change)).images[0].boxes[0].tolist() == [0, 0, 40, 30]


def _without(key: str, part: str) -> Change:
    return lambda values: values[part][0].pop(key)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda values: values.pop("categories"), "it has no categories"),
        (_without("height", "images"), "an entry has no 'height'"),
        (_without("bbox", "annotations"), "an entry has no 'bbox'"),
        (_without("name", "categories"), "an entry has no 'name'"),
        (lambda values: values["annotations"][0].update(bbox=[1, 2, 3]), "an entry is malformed"),
        (lambda values: values["annotations"][0].update(bbox="all of it"), "an entry is malformed"),
        (lambda values: values.update(images=[3]), "an entry is malformed"),
        (lambda values: values["categories"][0].update(name="ferry"), "two categories of one name or one id"),
        (lambda values: values["categories"][0].update(id=9), "two categories of one name or one id"),
    ],
)
def test_refuses_a_file_with_another_structure(tmp_path: Path, change: Change, fault: str) -> None:
    assert fault in problem(tmp_path, change)


def test_refuses_other_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="it has no images, annotations, categories"):
        read_coco(tmp_path / "a.json")
    with pytest.raises(DataError, match="There is no annotation file"):
        read_coco(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_coco(tmp_path / "c.json")


def test_a_data_set_that_trains_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(DataError, match=r"[1-9] of [1-9] images of .* are missing: got .*Check the folder"):
        read_coco(path).require_images()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": [], "images": []}))
    with pytest.raises(DataError, match="lists no image"):
        read_coco(path).require_images()


def test_to_coco_is_read_back(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path))
    (tmp_path / "copy.json").write_text(json.dumps(dataset.to_coco()))
    again = read_coco(tmp_path / "copy.json")
    assert again.classes == dataset.classes
    assert again.category_ids == dataset.category_ids
    for image, other in zip(dataset.images, again.images, strict=True):
        assert (image.id, image.path, image.size) == (other.id, other.path, other.size)
        np.testing.assert_array_equal(image.boxes, other.boxes)
        np.testing.assert_array_equal(image.labels, other.labels)
        np.testing.assert_array_equal(image.ignore, other.ignore)


def test_pycocotools_reads_to_coco_and_coco_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = read_coco(write(tmp_path))
    (tmp_path / "copy.json").write_text(json.dumps(dataset.to_coco()))
    ground_truth = COCO(str(tmp_path / "copy.json"))
    found = Detections(np.array([[1, 2, 11, 7]], np.float32), np.array([0.5], np.float32), np.array([2]))
    results = coco_results([(7, found), (5, Detections.empty())], dataset.category_ids)
    assert results == [{"image_id": 7, "category_id": 20, "bbox": [1.0, 2.0, 10.0, 5.0], "score": 0.5}]
    loaded = ground_truth.loadRes(json.loads(json.dumps(results)))
    assert len(loaded.anns) == 1
    assert sorted(ground_truth.getCatIds()) == [4, 9, 20]


def test_align_classes_matches_labels_by_name(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path))
    aligned = align_classes(dataset, ("tug", "barge", "ferry"))
    assert aligned.classes == ("tug", "barge", "ferry")
    assert aligned.category_ids == (20, 4, 9)
    assert [image.labels.tolist() for image in aligned.images] == [[0, 1, 2], []]
    with pytest.raises(DataError, match=r"barge.*ferry.*tug.*expected.*yacht.*merge_classes"):
        align_classes(dataset, ("barge", "ferry", "yacht"))


@pytest.mark.shared_data
def test_reads_real_data_sets(shared_data: Path) -> None:
    files = [path for path in sorted(shared_data.glob("*/*.json")) if path.stem in {"train", "test", "scenes"}]
    assert len(files) >= 10
    for path in files:
        images = path.parent / "scenes" if path.stem == "scenes" else None
        dataset = read_coco(path, images=images)
        assert len(dataset) > 0
        assert all(image.path.is_file() for image in dataset.images), path


def test_images_beside_the_file(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "annotations": [],
        "categories": [],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert read_coco(path).images[0].path == tmp_path / "images" / "a.png"
    (tmp_path / "a.png").write_bytes(b"")
    assert read_coco(path).images[0].path == tmp_path / "a.png"


@pytest.mark.parametrize("found", ["a.png", "b.png"])
def test_the_first_image_that_is_found_decides_on_the_folder(tmp_path: Path, found: str) -> None:
    (tmp_path / found).touch()
    path = {image.path.name: image.path for image in read_coco(write(tmp_path)).images}[found]
    assert path.is_file()


@pytest.mark.parametrize("scene", [None, float("nan")])
def test_a_scene_without_a_value_is_the_image_itself(tmp_path: Path, scene: float | None) -> None:
    def change(values: dict[str, Any]) -> None:
        for image in values["images"]:
            image["scene"] = scene

    assert [image.scene for image in read_coco(write(tmp_path, change)).images] == ["a.png", "b.png"]


def test_text_of_a_number_and_the_number_are_one_id(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["images"][0]["id"] = "7"
        values["annotations"][1]["category_id"] = "4"
        values["annotations"][2]["image_id"] = "7"

    changed, plain = read_coco(write(tmp_path, change)), read_coco(write(tmp_path))
    assert [image.id for image in changed.images] == [7, 5]
    assert changed.images[0].labels.tolist() == plain.images[0].labels.tolist()


def test_a_category_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    message = problem(tmp_path, lambda values: values["categories"][0].update(name=None))
    assert "category names that are not text" in message

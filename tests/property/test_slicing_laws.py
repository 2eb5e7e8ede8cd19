"""Tiling loses nothing: boxes, detections and pixels of the tiles restore those of the source images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from ifkd.core.detections import Detections
from ifkd.core.oriented_boxes import corners as oriented_corners
from ifkd.core.tiling import TileGrid, Window
from ifkd.data.coco import parse_coco, read_coco
from ifkd.data.slicing.slice_dataset import slice_dataset, tiles_content
from ifkd.data.slicing.tile_plan import (
    PlannedTile,
    TileRules,
    plan_tiles,
    restore_boxes,
    select_tiles,
    source_images,
)

KEEP_ALL = {"max_empty_fraction": 1.0, "min_visibility": 1e-9}
CATEGORIES = [{"id": 7, "name": "ship"}, {"id": 9, "name": "aircraft"}]


def coco(images: list[tuple[int, int]], boxes: list[list[tuple[float, ...]]], crowds: bool = False) -> dict[str, Any]:
    """Return COCO content of images with boxes x, y, width, height; with `crowds`, every third is a crowd."""
    annotations: list[dict[str, Any]] = []
    for image, image_boxes in enumerate(boxes, start=1):
        for box in image_boxes:
            number = len(annotations)
            annotations.append(
                {
                    "id": 100 + number,
                    "image_id": image,
                    "category_id": (7, 9)[number % 2],
                    "bbox": list(box),
                    "iscrowd": int(crowds and number % 3 == 0),
                    "heading_deg": float(number),
                }
            )
    listed = [
        {"id": number, "file_name": f"image {number}.tif", "height": size[0], "width": size[1]}
        for number, size in enumerate(images, start=1)
    ]
    return {"images": listed, "annotations": annotations, "categories": CATEGORIES}


@st.composite
def labeled(draw: Any, up_to_overlap: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw COCO content with boxes on eighths of pixels, and the sizes of tiles."""
    tile = draw(st.integers(16, 60))
    overlap = draw(st.integers(1, tile - 8))
    sizes = draw(st.lists(st.tuples(st.integers(10, 120), st.integers(10, 120)), min_size=1, max_size=2))
    boxes = []
    for height, width in sizes:
        image_boxes = []
        for _ in range(draw(st.integers(0, 6))):
            limits = [min(side, overlap) if up_to_overlap else side for side in (width, height)]
            w, h = (draw(st.integers(1, 8 * limit)) / 8 for limit in limits)
            x, y = (draw(st.integers(0, int(8 * (side - part)))) / 8 for side, part in ((width, w), (height, h)))
            image_boxes.append((x, y, w, h))
        boxes.append(image_boxes)
    return coco(sizes, boxes, crowds=True), {"tile_px": tile, "overlap_px": overlap}


def tiles(content: dict[str, Any], rules: TileRules) -> tuple[list[PlannedTile], dict[str, Any]]:
    """Return the tiles that the rules keep, and their COCO content."""
    sources = source_images(content, parse_coco(Path("a.json"), content, Path("images")))
    kept = select_tiles(plan_tiles(sources, rules), rules)
    return kept, tiles_content(kept, sources, content["categories"])


def corners(annotation: dict[str, Any]) -> list[float]:
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


@given(labeled(), st.sampled_from([0.0, 0.4, 1.0]))
@settings(deadline=None)
def test_pieces_restore_the_source_boxes(case: Any, min_visibility: float) -> None:
    content, sizes = case
    _, cut = tiles(
        content, TileRules(**sizes, max_empty_fraction=1.0, min_visibility=min_visibility, cut_objects="ignore")
    )
    found = {number: box.tolist() for number, box in restore_boxes(cut).items()}
    assert found == {annotation["id"]: corners(annotation) for annotation in content["annotations"]}


@st.composite
def turned(draw: Any) -> dict[str, Any]:
    """Draw COCO content of one image of 120 x 90 pixels with oriented boxes, which may protrude, and one without."""
    rectangles = []
    for _ in range(draw(st.integers(1, 5))):
        width = draw(st.floats(2, 15))
        box = [draw(st.floats(10, 110)), draw(st.floats(10, 80)), width * draw(st.floats(1.1, 5)), width,
               draw(st.floats(0, 179))]  # fmt: skip
        rectangles.append(oriented_corners(np.array([box], np.float32))[0].astype(np.float64))
    visible = [shapely.Polygon(one).intersection(shapely.box(0, 0, 120, 90)).bounds for one in rectangles]
    boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in visible]
    content = coco([(90, 120)], [[*boxes, (20.0, 30.0, 16.0, 12.0)]])
    for annotation, corners_of_one in zip(content["annotations"], rectangles, strict=False):
        annotation["segmentation"] = [corners_of_one.ravel().tolist()]
    return content


@given(turned(), st.sampled_from([0.0, 0.4]))
@settings(deadline=None)
def test_oriented_boxes_of_pieces_enclose_what_a_tile_shows(content: Any, min_visibility: float) -> None:
    rules = TileRules(tile_px=48, overlap_px=16, max_empty_fraction=1.0, min_visibility=min_visibility)
    sources = source_images(content, parse_coco(Path("a.json"), content, Path("images")))
    planned, cut = tiles(content, rules)
    read = parse_coco(Path("b.json"), cut, Path("images"))
    (source,) = sources
    known = source.image.oriented
    assert known is not None
    by_tile: dict[int, list[dict[str, Any]]] = {image.id: [] for image in read.images}
    for annotation in cut["annotations"]:
        by_tile[annotation["image_id"]].append(annotation)
    for tile, image in zip(planned, read.images, strict=True):
        window, found = tile.window, {one["source_annotation"] - 100: one for one in by_tile[image.id]}
        frame = shapely.box(window.left, window.top, window.right, window.bottom)
        for index, whole in enumerate(map(shapely.Polygon, oriented_corners(known[:-1]))):
            part = whole.intersection(frame)
            if index not in found:
                assert part.area < 0.02 * (1 + whole.length)
                continue
            annotation = found[index]
            assert annotation["visibility"] == pytest.approx(part.area / whole.area, abs=2e-3)
            assert annotation["iscrowd"] == (annotation["visibility"] < min_visibility) or part.area / whole.area > 0.39
            row = by_tile[image.id].index(annotation)
            assert image.oriented is not None
            box = oriented_corners(image.oriented[row : row + 1])[0] + np.array([window.left, window.top])
            assert shapely.Polygon(box).buffer(0.02).contains(part)
            turn = abs(image.oriented[row, 4] - known[index, 4]) % 90
            assert min(turn, 90 - turn) < 0.05 or image.oriented[row, 3] < 3
            piece = np.array(corners(annotation)) + np.array([window.left, window.top] * 2)
            bounds = part.intersection(shapely.box(*source.boxes[index])).bounds
            np.testing.assert_allclose(piece, bounds, atol=0.02)
    restored = restore_boxes(cut)
    for annotation, box in zip(source.annotations, source.boxes, strict=True):
        np.testing.assert_allclose(restored[annotation["id"]], box, atol=0.02)
    last = max(one["source_annotation"] for one in cut["annotations"])
    assert all(("segmentation" in one) == (one["source_annotation"] != last) for one in cut["annotations"])


@given(labeled(up_to_overlap=True), st.sampled_from([0.0, 0.4, 1.0]))
@settings(deadline=None)
def test_objects_up_to_the_overlap_are_complete_in_a_tile(case: Any, min_visibility: float) -> None:
    content, sizes = case
    _, cut = tiles(
        content, TileRules(**sizes, max_empty_fraction=0.0, min_visibility=min_visibility, cut_objects="drop")
    )
    found = {number: box.tolist() for number, box in restore_boxes(cut).items()}
    expected = {annotation["id"]: corners(annotation) for annotation in content["annotations"]}
    crowds = {annotation["id"] for annotation in content["annotations"] if annotation["iscrowd"]}
    assert {key: box for key, box in found.items() if key not in crowds} == {
        key: box for key, box in expected.items() if key not in crowds
    }


@given(labeled(up_to_overlap=True))
@settings(deadline=None)
def test_perfect_detections_in_tiles_merge_into_the_source_objects(case: Any) -> None:
    content, sizes = case
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
        annotation["category_id"] = 7
    kept, cut = tiles(content, TileRules(**sizes, **KEEP_ALL))
    for image in content["images"]:
        size = (image["height"], image["width"])
        expected = [corners(one) for one in content["annotations"] if one["image_id"] == image["id"]]
        if not _far_apart(np.array(expected).reshape(-1, 4)):
            continue
        parts = []
        for number, (tile, entry) in enumerate(zip(kept, cut["images"], strict=True)):
            if entry["source"]["id"] != image["id"]:
                continue
            tile_boxes = [corners(one) for one in cut["annotations"] if one["image_id"] == entry["id"]]
            origin = [entry["source"]["left"], entry["source"]["top"]] * 2
            boxes = np.array(tile_boxes, np.float32).reshape(-1, 4) + np.array(origin, np.float32)
            n = len(boxes)
            found = Detections(boxes, np.full(n, 0.9, np.float32), np.zeros(n, np.int64))
            parts.append(TileDetections.of_tile(found, number, window=tile.window, size=size))
        merged = merge(TileDetections.concatenate(parts), MergeSettings(edge_tolerance_px=0.0))
        assert sorted(merged.detections.boxes.tolist()) == sorted(expected)


def _far_apart(boxes: np.ndarray) -> bool:
    """Return whether no two boxes overlap; the tests of the merge cover those that do."""
    return not any(
        (np.maximum(one[:2], other[:2]) < np.minimum(one[2:], other[2:])).all()
        for number, one in enumerate(boxes)
        for other in boxes[:number]
    )


@given(labeled(), st.sampled_from([0.2, 0.4, 0.7]), st.sampled_from(["ignore", "drop"]))
@settings(deadline=None)
def test_pieces_equal_a_direct_computation(case: Any, min_visibility: float, cut_objects: Any) -> None:
    content, sizes = case
    rules = TileRules(**sizes, max_empty_fraction=1.0, min_visibility=min_visibility, cut_objects=cut_objects)
    kept, cut = tiles(content, rules)
    assert [(tile.window.top, tile.window.left) for tile in kept] == [
        (window.top, window.left)
        for image in content["images"]
        for window in TileGrid((image["height"], image["width"]), (rules.tile_px,) * 2, rules.overlap_px)
    ]
    for tile, entry in zip(kept, cut["images"], strict=True):
        found = [one for one in cut["annotations"] if one["image_id"] == entry["id"]]
        expected = []
        for one in content["annotations"]:
            if one["image_id"] != entry["source"]["id"]:
                continue
            x1, y1, x2, y2 = corners(one)
            left, top = max(x1, tile.window.left), max(y1, tile.window.top)
            right, bottom = min(x2, tile.window.right), min(y2, tile.window.bottom)
            if right <= left or bottom <= top:
                continue
            visibility = (right - left) * (bottom - top) / ((x2 - x1) * (y2 - y1))
            if visibility < min_visibility and cut_objects == "drop" and not one["iscrowd"]:
                continue
            box = [left - tile.window.left, top - tile.window.top, right - left, bottom - top]
            ignored = int(one["iscrowd"] or visibility < min_visibility)
            expected.append((one["id"], one["category_id"], one["heading_deg"], box, ignored))
        assert [
            (one["source_annotation"], one["category_id"], one["heading_deg"], one["bbox"], one["iscrowd"])
            for one in found
        ] == expected


@given(labeled(), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.integers(0, 9))
@settings(deadline=None)
def test_empty_tiles_are_kept_up_to_the_allowed_fraction(case: Any, fraction: float, seed: int) -> None:
    content, sizes = case
    all_tiles, _ = tiles(content, TileRules(**sizes, max_empty_fraction=1.0))
    rules = TileRules(**sizes, max_empty_fraction=fraction, seed=seed)
    kept = select_tiles(all_tiles, rules)
    with_objects = [tile for tile in all_tiles if tile.has_objects]
    empty = len(kept) - len(with_objects)
    assert [tile for tile in kept if tile.has_objects] == with_objects
    assert [tile for tile in all_tiles if tile in kept] == kept
    assert empty <= fraction * len(kept) + 1e-6
    if with_objects and empty < len(all_tiles) - len(with_objects):
        assert empty + 1 > fraction * (len(kept) + 1) - 1e-6
    assert select_tiles(all_tiles, rules) == kept


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_tiles_restore_the_source_pixels(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("sliced")
    (folder / "images").mkdir()
    bands, size = int(rng.integers(1, 6)), (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    dtype = rng.choice(["uint8", "uint16", "int16", "float32"])
    pixels = rng.integers(0, 200, (bands, *size)).astype(dtype)
    transform = Affine(2.0, 0.0, 390000.0, 0.0, -2.0, 5060000.0)
    profile = {"driver": "GTiff", "count": bands, "dtype": dtype, "photometric": "MINISBLACK"}
    with rasterio.open(
        folder / "images" / "image 1.tif", "w", height=size[0], width=size[1], crs="EPSG:32633", transform=transform,
        **profile,
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    (folder / "a.json").write_text(json.dumps(coco([size], [[(1, 1, 5, 5)]])))
    rules = TileRules(tile_px=32, overlap_px=8, max_empty_fraction=1.0)
    slice_dataset(folder / "a.json", folder / "out", rules)
    content = json.loads((folder / "out" / "tiles.json").read_text())
    restored = np.zeros_like(pixels)
    for image in content["images"]:
        top, left = image["source"]["top"], image["source"]["left"]
        with rasterio.open(folder / "out" / "images" / image["file_name"]) as tile:
            assert (tile.transform.c, tile.transform.f) == (390000.0 + 2 * left, 5060000.0 - 2 * top)
            assert tile.crs == "EPSG:32633"
            window = Window(top, left, tile.height, tile.width)
            restored[:, window.top : window.bottom, window.left : window.right] = tile.read()
    assert restored.dtype == pixels.dtype
    np.testing.assert_array_equal(restored, pixels)
    assert len(read_coco(folder / "out" / "tiles.json")) == len(content["images"])

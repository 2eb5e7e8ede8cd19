"""Oriented boxes of labels: smallest rectangles, and parts inside an image, compared with shapely."""

import json
import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import affinity

from ifkd.core.errors import DataError
from ifkd.core.oriented_boxes import corners, envelopes
from ifkd.data.coco import read_coco
from ifkd.data.oriented_labels import corner_polygon, cut_boxes, oriented_boxes, polygon_points

SIZE = (80, 120)


def rectangle(x, y, length, width, angle_deg):
    """Return a rectangle as shapely turns it, clockwise on the screen."""
    upright = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return affinity.rotate(upright, angle_deg)


def points_of(polygon):
    return shapely.get_coordinates(polygon)[:-1]


@st.composite
def boxes(draw):
    width = draw(st.floats(1.0, 30.0))
    length = width * draw(st.floats(1.05, 6.0))
    return draw(st.floats(-20, 140)), draw(st.floats(-20, 100)), length, width, draw(st.floats(0, 179.9))


def axis_difference(first, second):
    return abs((first - second + 90) % 180 - 90)


@given(box=boxes(), start=st.integers(0, 3), clockwise=st.booleans())
def test_corners_in_any_order_give_the_box_and_the_box_gives_the_corners(box, start, clockwise):
    points = np.roll(points_of(rectangle(*box)), start, axis=0)[:: 1 if clockwise else -1]
    found = oriented_boxes([polygon_points([points.ravel().tolist()])])
    np.testing.assert_allclose(found[0, :4], box[:4], atol=1e-3)
    assert axis_difference(found[0, 4], box[4]) < 0.02
    again = oriented_boxes([polygon_points(corner_polygon(found[0]))])
    np.testing.assert_allclose(again[0, :4], found[0, :4], atol=2e-3)
    written = np.array(corner_polygon(found[0])).reshape(4, 2)
    assert shapely.Polygon(written).symmetric_difference(rectangle(*box)).area < 0.02 * (1 + box[2])


@given(count=st.integers(3, 12), seed=st.integers(0, 2**31))
def test_the_box_of_a_polygon_is_its_smallest_rectangle(count, seed):
    points = np.random.default_rng(seed).normal(0, (30, 8), (count, 2)) + 60
    (box,) = oriented_boxes([points])
    found = shapely.Polygon(corners(box[None])[0])
    hull = shapely.MultiPoint(points).convex_hull
    assert found.buffer(0.01).contains(hull)
    turned = [affinity.rotate(hull, angle, origin=(0, 0)).envelope.area for angle in np.arange(0, 90, 0.5)]
    assert found.area <= min(turned) * (1 + 1e-4)


@pytest.mark.parametrize(
    "segmentation",
    [None, [], {"counts": "abc", "size": [8, 8]}, "polygon", [[1, 2, 3]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[]],
     [1, None, 3, 4, 5, 6], [[1, 2], [3, "x"], [4, 5]], [[1, 2, 3, 1e400, 5, 6]], [[1, 2, 3, 10**400, 5, 6]],
     [[0, 0, 1e30, 0, 1e30, 1e30]], [{"x": 1}], [[[1, 2], [3, 4]], 5]],
)  # fmt: skip
def test_what_is_no_polygon_has_no_box(segmentation):
    points = polygon_points(segmentation)
    assert points is None
    assert np.isnan(oriented_boxes([points])).all()


def test_a_polygon_without_an_area_has_no_box():
    lines = [[1, 1, 5, 5, 9, 9, 3, 3], [1, 1, 5, 5, 9, 9], [2, 2, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4, 4, 4], [0, 7] * 5]
    assert np.isnan(oriented_boxes([polygon_points(line) for line in lines])).all()


def test_several_polygons_and_a_flat_one_are_one_object():
    halves = [[10, 10, 20, 10, 20, 14, 10, 14], [30, 10, 40, 10, 40, 14, 30, 14]]
    for segmentation in (halves, [10, 10, 40, 10, 40, 14, 10, 14]):
        found = oriented_boxes([polygon_points(segmentation)])
        np.testing.assert_allclose(found, [[25, 12, 30, 4, 0]], atol=1e-4)


@given(box=boxes())
def test_a_cut_box_is_the_smallest_of_its_direction_around_the_visible_part(box):
    oriented = oriented_boxes([points_of(rectangle(*box))])
    whole, window = shapely.Polygon(corners(oriented)[0]), shapely.box(0, 0, SIZE[1], SIZE[0])
    part, cut = whole.intersection(window), cut_boxes(oriented, SIZE)
    assert cut.visible[0] == pytest.approx(part.area / whole.area, abs=1e-4)
    if np.isnan(cut.oriented[0]).any():
        assert part.area < 0.02 * (box[2] + box[3])
        return
    np.testing.assert_allclose(cut.bounds[0], part.bounds, atol=2e-3)
    found = shapely.Polygon(corners(cut.oriented)[0])
    assert found.buffer(0.01).contains(part)
    turn = axis_difference(cut.oriented[0, 4], oriented[0, 4])
    assert min(turn, abs(turn - 90)) < 0.01  # the rest of a ship may be wider than long
    upright = affinity.rotate(part, -float(oriented[0, 4]), origin=(0, 0)).bounds
    tight = sorted([upright[2] - upright[0], upright[3] - upright[1]], reverse=True)
    np.testing.assert_allclose(cut.oriented[0, 2:4], tight, atol=5e-3)


def test_a_box_inside_is_not_changed_and_one_outside_is_gone():
    oriented = oriented_boxes(
        [points_of(rectangle(60, 40, 30, 10, 33)), points_of(rectangle(-60, 40, 30, 10, 33)), None]
    )
    cut = cut_boxes(oriented, SIZE)
    assert (cut.oriented[0] == oriented[0]).all()
    assert (cut.bounds[:1] == envelopes(oriented[:1])).all()
    assert cut.visible[:2].tolist() == [1.0, 0.0]
    assert np.isnan(cut.oriented[1:]).all()
    assert math.isnan(cut.visible[2])


def write(folder, *segmentations, crowds=()):
    annotations = [
        {"id": index + 1, "image_id": 1 + index % 2, "category_id": 1, "bbox": [10, 10, 30, 20],
         "iscrowd": int(index in crowds)} | ({} if one is None else {"segmentation": one})
        for index, one in enumerate(segmentations)
    ]  # fmt: skip
    images = [{"id": index, "file_name": f"{index}.png", "height": 80, "width": 120} for index in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


TURNED = points_of(rectangle(25, 20, 28, 6, 40)).ravel().tolist()


def test_files_keep_oriented_boxes_and_the_reader_cuts_them_at_the_image_border(tmp_path):
    beyond = points_of(rectangle(115, 20, 28, 6, 0)).ravel().tolist()
    data = read_coco(write(tmp_path, [TURNED], None, [beyond]))
    first, second, third = (image.oriented for image in data.images)
    np.testing.assert_allclose(first, [[25, 20, 28, 6, 40], [110.5, 20, 19, 6, 0]], atol=1e-3)
    assert second is None
    assert third is None
    again = read_coco(tmp_path / "a.json")
    (tmp_path / "again.json").write_text(json.dumps(again.to_coco()))
    np.testing.assert_allclose(read_coco(tmp_path / "again.json").images[0].oriented, first, atol=2e-3)


def test_polygons_change_nothing_else_of_a_data_set(tmp_path):
    with_polygons = read_coco(write(tmp_path, [TURNED], [TURNED], {"counts": [3], "size": [80, 120]}))
    plain = read_coco(write(tmp_path, None, None, None))
    for image, other in zip(with_polygons.images, plain.images, strict=True):
        assert image.boxes.tobytes() == other.boxes.tobytes()
        assert image.labels.tobytes() == other.labels.tobytes()
        assert other.oriented is None
    assert "segmentation" not in json.dumps(plain.to_coco())


def test_objects_without_an_oriented_box_are_counted(tmp_path):
    complete = read_coco(write(tmp_path, [TURNED], [TURNED], None, crowds=(2,)))
    complete.require_oriented()
    with pytest.raises(DataError) as error:
        read_coco(write(tmp_path, [TURNED], None, [[1, 1, 2, 2, 3, 3]], [TURNED], None, crowds=(4,))).require_oriented()
    assert error.value.problem.startswith("2 of 4 objects of ")
    assert "2.png, 1.png" in str(error.value) or "1.png, 2.png" in str(error.value)
    assert "ifkd data convert" in str(error.value.hint)

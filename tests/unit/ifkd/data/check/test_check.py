"""`ifkd data check`: every kind of mistake is found, and the fixed copy is accepted by the strict reader."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import ExifTags, Image, ImageOps
from pycocotools.coco import COCO

from deploy.cli.main import main
from ifkd.core.errors import DataError, OutputError
from ifkd.data.check.check import CheckPlan, CheckSource, check
from ifkd.data.check.finding import KINDS
from ifkd.data.check.fix import write_fixed
from ifkd.data.coco import read_coco
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import read_image


@pytest.fixture
def train(tmp_path, write_data_set):
    return write_data_set(tmp_path / "data", "train", images=6)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def found(*paths, imagery=None, **options):
    plan = CheckPlan(tuple(CheckSource(path.stem, path) for path in paths), imagery or ImageryOptions(), **options)
    return check(plan, workers=1)


def kinds(checked, *, notes=False):
    return {one.kind: one.count for one in checked.record.findings if notes or one.severity != "note"}


def reads(path, images=None):
    """Read a file and all its images as training does."""
    for image in read_coco(path, images=images).images:
        read_image(image.path, size=image.size)


def test_a_valid_data_set_is_clean(train):
    checked = found(train)
    assert kinds(checked) == {}
    assert checked.record.clean
    split = checked.record.splits[0]
    assert (split.listed, split.images, split.objects, split.ignored) == (6, 6, 12, 0)
    assert split.per_class == read_coco(train).objects_per_class()
    assert checked.record.image_sizes == {"64x64": 6}
    assert checked.record.image_formats == {"PNG, uint8, 3 bands": 6}


# --- annotation files ---------------------------------------------------------------------------------------------


def box(content, bbox, index=0):
    content["annotations"][index]["bbox"] = bbox


def polygon(content, *points, index=0):
    """Set a polygon with points in fractions of the box of an annotation."""
    x, y, width, height = content["annotations"][index]["bbox"]
    flat = [value for u, v in points for value in (x + u * width, y + v * height)]
    content["annotations"][index]["segmentation"] = [flat]


def list_twice(content):
    content["images"][1]["file_name"] = content["images"][0]["file_name"]


def repeat(content, key, **changes):
    content[key].append({**content[key][0], **changes})


MISTAKES = {
    "boxes_not_finite": lambda c: box(c, [math.nan, 0, 4, 4]),
    "boxes_without_area": lambda c: box(c, [3, 3, 0, 4]),
    "boxes_outside_image": lambda c: box(c, [70, 3, 9, 9]),
    "boxes_cross_border": lambda c: box(c, [50, 3, 20, 9]),
    "boxes_tiny": lambda c: box(c, [5, 5, 0.5, 9]),
    "boxes_duplicated": lambda c: repeat(c, "annotations", id=999),
    "boxes_of_two_classes": lambda c: repeat(
        c, "annotations", id=999, category_id=next(k for k in (3, 7) if k != c["annotations"][0]["category_id"])
    ),
    "annotations_malformed": lambda c: box(c, [1, 2, 3]),
    "annotation_ids_not_unique": lambda c: c["annotations"][1].update(id=1),
    "annotations_of_unknown_image": lambda c: c["annotations"][0].update(image_id=12345),
    "annotations_of_unknown_category": lambda c: c["annotations"][0].update(category_id=12345),
    "images_malformed": lambda c: c["images"].append({"file_name": None, "id": 5}),
    "image_ids_not_unique": lambda c: c["images"][1].update(id=c["images"][0]["id"]),
    "images_listed_twice": list_twice,
    "sizes_malformed": lambda c: c["images"][0].update(height="tall"),
    "sizes_differ": lambda c: c["images"][0].update(height=63),
    "files_outside_folder": lambda c: c["images"][0].update(file_name="../secret.png"),
    "files_missing": lambda c: c["images"][0].update(file_name="gone.png"),
    "file_names_differ": lambda c: c["images"][0].update(file_name="TRAIN_000.PNG"),
    "categories_malformed": lambda c: c["categories"].append({"id": 11}),
    "category_ids_not_unique": lambda c: c["categories"].append({"id": 3, "name": "raft"}),
    "category_names_not_unique": lambda c: c["categories"].append({"id": 11, "name": "ferry"}),
    "classes_without_objects": lambda c: c["categories"].append({"id": 11, "name": "raft"}),
    "ids_not_integers": lambda c: c["categories"].append({"id": "x", "name": "raft"}),
    "lists_missing": lambda c: c.pop("annotations"),
    "flags_unclear": lambda c: c["annotations"][0].update(iscrowd="maybe"),
    "polygons_without_area": lambda c: c["annotations"][0].update(segmentation=[[1, 1, 9, 9, 5, 5, 3, 3]]),
    "polygons_apart_from_boxes": lambda c: c["annotations"][0].update(segmentation=[[0, 0, 3, 0, 3, 3, 0, 3]]),
    "polygons_of_other_points": lambda c: polygon(c, (0, 0), (1, 0), (1, 1), (0.5, 1), (0, 0.5)),
    "quadrilaterals_not_rectangles": lambda c: polygon(c, (0, 0), (1, 0), (1, 1), (0.7, 0.3)),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_mistake_is_found(train, kind):
    edit(train, MISTAKES[kind])
    checked = found(train)
    finding = next(one for one in checked.record.findings if one.kind == kind)
    assert finding.count >= 1
    assert finding.examples
    assert finding.hint == KINDS[kind].hint


@pytest.mark.parametrize("kind", [kind for kind in MISTAKES if KINDS[kind].severity == "error"])
def test_training_refuses_errors(train, kind):
    edit(train, MISTAKES[kind])
    with pytest.raises(DataError):
        reads(train)


@pytest.mark.parametrize("kind", [kind for kind in MISTAKES if KINDS[kind].severity == "warning"])
def test_training_reads_data_with_warnings(train, kind):
    edit(train, MISTAKES[kind])
    if kind != "ids_not_integers":  # ids that are text and numbers cannot be sorted
        reads(train)


@pytest.mark.parametrize("kind", MISTAKES)
def test_the_fixed_copy_is_valid(train, tmp_path, kind):
    edit(train, MISTAKES[kind])
    record = write_fixed(found(train), tmp_path / "fixed")
    copy = tmp_path / "fixed" / "train.json"
    reads(copy, Path(record.images))
    again = check(CheckPlan((CheckSource("train", copy, Path(record.images)),)), workers=1)
    left = kinds(again)
    assert kind not in left or KINDS[kind].fix is None
    assert {name for name in left if KINDS[name].fix is not None} == set()


def test_the_fixed_copy_of_a_valid_data_set_is_equal(train, tmp_path):
    record = write_fixed(found(train), tmp_path / "fixed")
    before, after = json.loads(train.read_text()), json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert after["images"] == before["images"]
    assert after["annotations"] == before["annotations"]
    assert after["categories"] == before["categories"]
    assert after["info"]["fixed_from"]["sha256"] == found(train).record.sources[0].sha256
    assert record.splits[0].account.images.dropped == {}


def test_rectangles_and_masks_are_no_finding(train):
    edit(train, lambda c: polygon(c, (0, 0), (1, 0), (1, 1), (0, 1)))
    edit(train, lambda c: polygon(c, (0.98, 0.05), (0, 0), (0.03, 1), (1, 0.97), index=1))  # corners of whole pixels
    edit(train, lambda c: c["annotations"][2].update(segmentation=[]))
    edit(train, lambda c: c["annotations"][3].update(segmentation={"counts": [9], "size": [3, 3]}))
    assert kinds(found(train), notes=True) == {"category_ids_not_contiguous": 6}


@pytest.mark.parametrize("segmentation", [[[1, 1, 9, 9, 5, 5, 3, 3]], [[0, 0, 3, 0, 3, 3, 0, 3]], ["x"], [[1, 2]]])
def test_fix_leaves_out_only_the_invalid_polygon(train, tmp_path, segmentation):
    edit(train, lambda c: polygon(c, (0, 0), (1, 0), (1, 1), (0, 1), index=1))
    before = json.loads(train.read_text())["annotations"]
    edit(train, lambda c: c["annotations"][0].update(segmentation=segmentation))
    account = write_fixed(found(train), tmp_path / "fixed").splits[0].account
    assert account.objects.kept == len(before) - 1
    assert sum(account.objects.changed.values()) == 1
    after = json.loads((tmp_path / "fixed" / "train.json").read_text())["annotations"]
    assert [one["bbox"] for one in after] == [one["bbox"] for one in before]
    assert "segmentation" not in after[0]
    assert after[1]["segmentation"] == before[1]["segmentation"]


def test_no_fixed_copy_without_an_image_file(train, tmp_path, capsys):
    command = ["data", "check", f"train={train}", "--images", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "o")]
    assert main([*command, "--fix", str(tmp_path / "fixed")]) == 2
    assert "No image file is found, so there is no fixed copy: got " in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()


def test_fix_leaves_out_only_the_invalid_box(train, tmp_path):
    edit(train, MISTAKES["boxes_not_finite"])
    record = write_fixed(found(train), tmp_path / "fixed")
    assert record.splits[0].account.objects.dropped == {"boxes_not_finite": 1}
    assert (record.splits[0].account.images.written, record.splits[0].account.objects.written) == (6, 11)


def test_fix_clips_a_box_across_the_border(train, tmp_path):
    edit(train, MISTAKES["boxes_cross_border"])
    write_fixed(found(train), tmp_path / "fixed")
    clipped = json.loads((tmp_path / "fixed" / "train.json").read_text())["annotations"][0]
    assert clipped["bbox"] == [50, 3, 14, 9]
    assert clipped["area"] == 14 * 9


@pytest.mark.parametrize(
    ("stated", "bbox", "kept"),
    [
        ((200, 300), [5, 5, 20, 20], False),  # it fits into the file by chance
        ((200, 300), [150, 100, 30, 30], False),
        ((40, 50), [30, 30, 30, 20], True),  # it does not fit into the stated size, but into the file
        ((65, 63), [5, 5, 20, 20], True),  # at most 2 pixels
        ((200, 300), None, True),  # there is nothing to misplace
    ],
)
def test_fix_corrects_a_wrong_size_only_where_the_boxes_belong_to_the_file(train, tmp_path, stated, bbox, kept):
    edit(train, lambda c: c["images"][0].update(height=stated[0], width=stated[1]))
    content = json.loads(train.read_text())
    image_id = content["images"][0]["id"]
    others = [one for one in content["annotations"] if one["image_id"] != image_id]
    first = [] if bbox is None else [{"id": 99, "image_id": image_id, "category_id": 3, "bbox": bbox}]
    edit(train, lambda c: c.update(annotations=[*first, *others]))
    account = write_fixed(found(train), tmp_path / "fixed").splits[0].account
    assert account.images.dropped == ({} if kept else {"sizes_differ": 1})
    assert account.images.changed == ({"sizes_differ": 1} if kept else {})
    assert account.objects.dropped == ({} if kept else {"sizes_differ": 1})


def as_corners(content, factor=1.0):
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x * factor, y * factor, (x + w) * factor, (y + h) * factor]


@pytest.mark.parametrize("factor", [1.0, 1 / 64])
def test_fix_converts_boxes_that_only_one_other_form_fits(train, tmp_path, factor):
    boxes = [[40, 4, 20, 20], [30, 30, 30, 30], [4, 40, 24, 20], [40, 40, 20, 20]]
    edit(train, lambda c: c.update(annotations=c["annotations"][: len(boxes)]))
    for index, one in enumerate(boxes):
        edit(train, lambda c, index=index, one=one: box(c, one, index))
    edit(train, lambda c: as_corners(c, factor))
    account = write_fixed(found(train), tmp_path / "fixed").splits[0].account
    fixed = json.loads((tmp_path / "fixed" / "train.json").read_text())["annotations"]
    np.testing.assert_allclose([one["bbox"] for one in fixed], boxes)
    assert account.objects.changed == {f"boxes_as_{'corners' if factor == 1 else 'fractions_of_corners'}": 4}


def test_fix_refuses_boxes_whose_form_is_unclear(train, tmp_path, capsys):
    edit(train, lambda c: [one.update(bbox=[0.5, 0.5, 0.2, 0.2]) for one in c["annotations"]])
    command = ["data", "check", f"train={train}", "--out", str(tmp_path / "out"), "--fix", str(tmp_path / "fixed")]
    assert main(command) == 2
    assert "where fractions and fractions_of_centers would fit" in capsys.readouterr().err
    assert (tmp_path / "out" / "check.html").is_file()
    assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize(("orientation", "size"), [(6, (48, 64)), (8, (48, 64)), (3, (48, 64)), (6, (64, 64))])
def test_fix_turns_boxes_of_a_displayed_image_or_leaves_it_out(train, tmp_path, orientation, size):
    pixels = np.full((*size, 3), 40, np.uint8)
    pixels[4:14, 20:50] = 240
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = train.parent / "images" / "train_000.png"
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    rows, columns = np.nonzero(shown[:, :, 0] == 240)
    left, top = int(columns.min()), int(rows.min())
    box_of_bar = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    edit(train, lambda c: c["images"][0].update(height=shown.shape[0], width=shown.shape[1]))
    edit(train, lambda c: c["annotations"][0].update(bbox=box_of_bar))
    edit(train, lambda c: polygon(c, (0, 0), (1, 0), (1, 1), (0, 1)))
    first = json.loads(train.read_text())
    first["annotations"] = [
        one for one in first["annotations"] if one["id"] == 1 or one["image_id"] != first["images"][0]["id"]
    ]
    train.write_text(json.dumps(first))
    if orientation == 3 or size[0] == size[1]:
        assert write_fixed(found(train), tmp_path / "fixed").splits[0].account.images.dropped == {
            "orientation_unclear": 1
        }
        with pytest.raises(DataError, match="may fit the image as stored or as displayed"):
            reads(train)
        return
    assert kinds(found(train))["orientation_displayed"] == 1
    write_fixed(found(train), tmp_path / "fixed")
    fixed = read_coco(tmp_path / "fixed" / "train.json", images=train.parent / "images").images[0]
    assert fixed.boxes[0].tolist() == [20, 4, 50, 14]
    np.testing.assert_allclose(fixed.oriented[0], [35, 9, 30, 10, 0], atol=1e-4)
    reads(train)


@pytest.mark.parametrize("name", ["sub\\train_000.png", "sub%2Ftrain_000.png", "SUB\\Train%5F000.PNG"])
def test_file_names_of_windows_and_of_addresses_are_fixed(train, tmp_path, name):
    folder = train.parent / "images"
    (folder / "sub").mkdir()
    (folder / "train_000.png").rename(folder / "sub" / "train_000.png")
    edit(train, lambda c: c["images"][0].update(file_name=name.replace("SUB", "sub")))
    checked = found(train)
    assert kinds(checked) == {"file_names_differ": 1}
    assert write_fixed(checked, tmp_path / "fixed").splits[0].account.images.changed == {"file_names_differ": 1}
    reads(tmp_path / "fixed" / "train.json", folder)


@pytest.mark.parametrize("name", ["..\\secret.png", "%2e%2e%2Fsecret.png"])
def test_another_spelling_does_not_lead_out_of_the_folder(train, name):
    Image.new("RGB", (64, 64)).save(train.parent / "secret.png")
    edit(train, lambda c: c["images"][0].update(file_name=name))
    assert kinds(found(train))["files_missing"] == 1


def test_ids_and_numbers_as_text_are_read(train, tmp_path):
    def as_text(content):
        for one in content["annotations"]:
            one.update(image_id=str(one["image_id"]), bbox=[str(value) for value in one["bbox"]], iscrowd="0")
        content["categories"] = [{**one, "id": str(one["id"])} for one in content["categories"]]

    before = read_coco(train)
    edit(train, as_text)
    checked = found(train)
    assert kinds(checked) == {"ids_not_integers": 3}
    account = write_fixed(checked, tmp_path / "fixed").splits[0].account
    after = read_coco(tmp_path / "fixed" / "train.json", images=train.parent / "images")
    assert [one.boxes.tolist() for one in after.images] == [one.boxes.tolist() for one in before.images]
    assert after.objects_per_class() == before.objects_per_class()
    assert account.objects.changed == {"numbers_as_text": 12}


@pytest.mark.parametrize(("value", "ignored"), [("0", 0), ("false", 0), (0.0, 0), ("1", 1), (True, 1), (None, 0)])
def test_iscrowd_as_text(train, value, ignored):
    edit(train, lambda c: c["annotations"][0].update(iscrowd=value))
    assert found(train).record.splits[0].ignored == ignored
    assert sum(int(image.ignore.sum()) for image in read_coco(train).images) == ignored


def test_a_category_that_only_groups_others_is_left_out(train, tmp_path):
    def group(content):
        content["categories"] = [{**one, "supercategory": "ships"} for one in content["categories"]]
        content["categories"].insert(0, {"id": 0, "name": "ships", "supercategory": "none"})

    classes = read_coco(train).classes
    edit(train, group)
    checked = found(train)
    assert kinds(checked) == {"categories_of_groups": 1}
    write_fixed(checked, tmp_path / "fixed")
    assert read_coco(tmp_path / "fixed" / "train.json", images=train.parent / "images").classes == classes


def test_the_account_names_every_entry(train, tmp_path):
    edit(train, lambda c: c["images"].append({"id": 55, "height": 9, "width": 9}))
    edit(train, lambda c: c["images"][1].update(file_name="gone.png"))
    for changes in ({"image_id": 55}, {"category_id": 99}, {"bbox": [1, 2]}, {"bbox": [200, 200, 5, 5]}):
        edit(train, lambda c, changes=changes: repeat(c, "annotations", id=len(c["annotations"]) + 1, **changes))
    edit(train, lambda c: c["annotations"].append("no annotation"))
    edit(train, lambda c: box(c, [50, 3, 20, 9]))
    checked = found(train)
    account = write_fixed(checked, tmp_path / "fixed").splits[0].account
    assert account == write_fixed(checked, tmp_path / "again").splits[0].account
    assert (account.images.received, account.images.dropped) == (7, {"files_missing": 1, "images_malformed": 1})
    assert account.objects.received == 17
    assert account.objects.dropped == {
        "annotations_malformed": 2,
        "annotations_of_unknown_category": 1,
        "annotations_of_unknown_image": 1,
        "boxes_outside_image": 1,
        "files_missing": 2,
    }
    assert account.objects.changed == {"boxes_cross_border": 1}
    info = json.loads((tmp_path / "fixed" / "train.json").read_text())["info"]
    assert info["account"] == account.model_dump(mode="json")
    assert sum(info["images_left_out"].values()) == 2


def test_corners_instead_of_widths_are_suggested(train):
    def corners(content):
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x, y, x + w, y + h]

    edit(train, corners)
    hints = [one.suggestion for one in found(train).record.findings if one.kind == "boxes_cross_border"]
    assert hints
    assert "corners instead of widths" in hints[0]


def test_fractions_instead_of_pixels_are_suggested(train):
    edit(train, lambda c: [one.update(bbox=[v / 64 for v in one["bbox"]]) for one in c["annotations"]])
    hints = [one.suggestion for one in found(train).record.findings if one.kind == "boxes_tiny"]
    assert hints
    assert "fractions of the image" in hints[0]


def test_a_byte_order_mark_is_found_and_removed(train, tmp_path):
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes())
    assert len(read_coco(train)) == 6
    checked = found(train)
    assert kinds(checked) == {"byte_order_mark": 1}
    write_fixed(checked, tmp_path / "fixed")
    assert len(read_coco(tmp_path / "fixed" / "train.json", images=train.parent / "images")) == 6


def test_unused_category_ids_and_rounded_boxes_are_notes(train):
    edit(train, lambda c: box(c, [-1, 3, 20, 9]))
    checked = found(train)
    assert checked.record.clean
    assert kinds(checked, notes=True) == {"category_ids_not_contiguous": 6, "boxes_cross_border_slightly": 1}


def test_file_names_of_any_script_and_with_spaces(train):
    name = "höhe 港 1.PNG"
    (train.parent / "images" / "train_000.png").rename(train.parent / "images" / name)
    edit(train, lambda c: c["images"][0].update(file_name=name))
    assert kinds(found(train)) == {}


# --- image files --------------------------------------------------------------------------------------------------


def test_each_unreadable_file_is_found(train):
    folder = train.parent / "images"
    (folder / "train_000.png").write_bytes(b"")
    content = (folder / "train_001.png").read_bytes()
    (folder / "train_001.png").write_bytes(content[: len(content) // 2])
    (folder / "train_002.png").write_text("no picture")
    finding = next(one for one in found(train).record.findings if one.kind == "files_unreadable")
    assert finding.count == 3
    assert "it is empty" in finding.examples[0]


def test_a_link_out_of_the_folder_is_not_followed(train, tmp_path):
    secret = tmp_path / "secret.png"
    target = train.parent / "images" / "train_000.png"
    target.rename(secret)
    target.symlink_to(secret)
    assert kinds(found(train))["files_outside_folder"] == 1


def test_a_too_large_image_is_found_before_it_is_decoded(train):
    checked = found(train, imagery=ImageryOptions(max_pixels=64 * 64 - 1))
    assert kinds(checked)["files_too_large"] == 6


def test_bit_depths_and_bands_are_counted(train):
    folder = train.parent / "images"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(folder / "train_000.png")
    Image.fromarray(np.zeros((64, 64), bool)).save(folder / "train_001.png")
    assert found(train).record.image_formats == {
        "PNG, uint8, 3 bands": 4,
        "PNG, uint16, 1 band": 1,
        "PNG, uint8 of 1 bits, 1 band": 1,
    }


# --- splits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def splits(train, write_data_set):
    return train, write_data_set(train.parent, "test", images=4, seed=1)


def test_splits_without_duplicates(splits):
    assert kinds(found(*splits)) == {}


def test_fix_keeps_an_image_of_two_splits_in_the_test_split(splits, tmp_path):
    train, test = splits
    Image.open(train.parent / "images" / "train_003.png").save(train.parent / "images" / "test_001.bmp")
    edit(test, lambda c: c["images"][1].update(file_name="test_001.bmp"))
    checked = found(*splits)
    finding = next(one for one in checked.record.findings if one.kind == "images_in_two_splits")
    assert (finding.split, finding.count, finding.examples) == (
        "train and test",
        1,
        ("train_003.png and test_001.bmp",),
    )
    record = write_fixed(checked, tmp_path / "fixed")
    assert record.splits[0].account.images.dropped == {"images_in_two_splits": 1}
    assert record.splits[1].account.images.dropped == {}


def test_a_rotated_resized_and_recompressed_image_is_a_near_duplicate(splits):
    images = splits[0].parent / "images"
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
    scene.save(images / "train_003.png")
    scene.transpose(Image.Transpose.ROTATE_90).resize((48, 48)).save(images / "test_001.jpg", quality=60)
    edit(splits[1], lambda c: c["images"][1].update(file_name="test_001.jpg", height=48, width=48))
    found_kinds = kinds(found(*splits))
    assert found_kinds["near_duplicates_across_splits"] == 1
    assert "images_in_two_splits" not in found_kinds


def test_a_scene_in_two_splits_is_found(splits):
    _train, test = splits
    edit(test, lambda c: c["images"][0].update(scene="train 0"))
    finding = next(one for one in found(*splits).record.findings if one.kind == "scenes_in_two_splits")
    assert (finding.split, finding.examples) == ("train and test", ("train 0",))


def test_different_classes_of_splits_are_found_and_fixed(splits, tmp_path):
    train, test = splits
    edit(test, lambda c: c["categories"].reverse() or [k.update(id=i + 1) for i, k in enumerate(c["categories"])])
    edit(test, lambda c: c.update(annotations=[]))
    checked = found(*splits)
    assert kinds(checked)["categories_differ"] == 1
    write_fixed(checked, tmp_path / "fixed")
    images = train.parent / "images"
    first, second = (read_coco(tmp_path / "fixed" / f"{name}.json", images=images) for name in ("train", "test"))
    assert first.classes == second.classes


def test_the_fixed_copy_reads_images_of_two_folders(train, tmp_path, write_data_set):
    test = write_data_set(tmp_path / "data" / "more", "test", images=4, seed=1)
    record = write_fixed(found(train, test), tmp_path / "fixed")
    for name in ("train", "test"):
        reads(tmp_path / "fixed" / f"{name}.json", Path(record.images))


def test_a_copy_has_the_files_that_belong_to_images(splits, tmp_path):
    checked = found(*splits)
    image = checked.files[0].folder / checked.images[0].entry.name
    image.with_name(f"{image.name}.msk").write_bytes(b"mask")
    write_fixed(found(*splits), tmp_path / "fixed", copy_images=True)
    assert [path.read_bytes() for path in (tmp_path / "fixed").rglob("*.msk")] == [b"mask"]


def test_copy_images(splits, tmp_path):
    write_fixed(found(*splits), tmp_path / "fixed", copy_images=True)
    for name in ("train", "test"):
        reads(tmp_path / "fixed" / f"{name}.json")
    assert len(list((tmp_path / "fixed" / "images").iterdir())) == 10


def test_fix_refuses_a_folder_with_files(train):
    before = train.read_bytes()
    with pytest.raises(OutputError, match="is not empty"):
        write_fixed(found(train), train.parent)
    assert train.read_bytes() == before


# --- the command --------------------------------------------------------------------------------------------------


def test_exit_codes(train, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["data", "check", str(train), *out]) == 0
    assert "no errors and no warnings" in capsys.readouterr().out
    edit(train, MISTAKES["boxes_outside_image"])
    assert main(["data", "check", f"train={train}", *out, "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["findings"][0]["kind"] == "boxes_outside_image"
    assert json.loads((tmp_path / "out" / "check.json").read_text())["clean"] is False
    train.write_text("[1, 2]")
    assert main(["data", "check", str(train), *out]) == 2
    assert "is not a COCO detection file: got a list" in capsys.readouterr().err


def test_a_recipe_names_the_splits(recipe_values, data_folder, tmp_path, capsys):
    recipe_values["data"]["validation"] = 0.25
    recipe_values["data"]["merge_classes"] = {"tug": "ferry"}
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(recipe_values))
    code = main(["data", "check", str(path), "--out", str(tmp_path / "out"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert code == 0, [one["title"] for one in record["findings"]]
    assert [(one["name"], one["listed"]) for one in record["splits"]] == [("train", 6), ("validation", 2), ("test", 4)]
    assert record["classes"] == ["barge", "ferry"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.json", "b/a.json"], "Two files have the same split name"),
        (["/x=a.json"], "is not a valid split name"),
        (["absent.json"], "There is no annotation file absent.json"),
        (["a.json", "--copy-images"], "--copy-images needs --fix"),
        (["a.toml", "--images", "."], "--images does not apply to a recipe"),
    ],
)
def test_refuses_invalid_arguments(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_fixed_copy_and_prints_its_recipe_lines(train, tmp_path, capsys):
    edit(train, MISTAKES["boxes_outside_image"])
    fixed = tmp_path / "fixed"
    assert main(["data", "check", str(train), "--out", str(tmp_path / "out"), "--fix", str(fixed)]) == 1
    assert f'root = "{fixed}", images = "{train.parent / "images"}"' in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "check.json").read_text())
    assert record["fixed"]["splits"][0]["account"]["objects"]["dropped"] == {"boxes_outside_image": 1}


# --- real imagery -------------------------------------------------------------------------------------------------


REAL = (
    "airplanes_airbus_pleiades",
    "fair1m_mini",
    "sar_aircraft_composite",
    "sar_aircraft_real9",
    "sar_ships_mini",
    "ships_wu_googleearth",
)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_real_data_sets_have_the_counts_of_pycocotools(shared_data, name):
    paths = [shared_data / name / "train.json", shared_data / name / "test.json"]
    checked = found(*paths)
    assert all(one.severity != "error" for one in checked.record.findings)
    duplicated = sum(one.count for one in checked.record.findings if one.kind == "boxes_duplicated")
    assert duplicated == (17 if name == "airplanes_airbus_pleiades" else 0)
    for path, split in zip(paths, checked.record.splits, strict=True):
        ground_truth = COCO(str(path))
        assert split.images == len(ground_truth.getImgIds())
        for category in ground_truth.loadCats(ground_truth.getCatIds()):
            labeled = len(ground_truth.getAnnIds(catIds=category["id"], iscrowd=False))
            assert 0 <= labeled - split.per_class[category["name"]] <= duplicated


def test_objects_that_an_oriented_detector_cannot_learn_are_found(train, tmp_path):
    """Ignored regions need no oriented box; a polygon without an area is none."""

    def change(content):
        for number, entry in enumerate(content["annotations"]):
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            if number < 3:
                del entry["segmentation"]
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][3]["segmentation"] = [[1, 1, 2, 2, 3, 3]]

    edit(train, change)
    assert "boxes_not_oriented" not in kinds(found(train))
    assert kinds(found(train, oriented=True))["boxes_not_oriented"] == 3

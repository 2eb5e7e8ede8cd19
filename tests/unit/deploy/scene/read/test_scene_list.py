"""The scenes of the arguments, and their names."""

import json
import os

import pytest

from deploy.scene.read.scene_list import is_single, read_sources
from ifkd.core.errors import DataError, IfkdError, UsageError

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def named(*arguments, asset=None):
    return [
        (source.name, str(source.location)) for source in read_sources([str(one) for one in arguments], asset=asset)
    ]


@pytest.fixture
def files(tmp_path):
    for name in ("b.tif", "a.tif", "deep/c.tif", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_paths_and_globs_keep_their_order_and_globs_are_sorted(files):
    found = named(files / "deep" / "c.tif", files / "*.tif")
    assert found == [
        (name, str(files / where)) for name, where in (("c", "deep/c.tif"), ("a", "a.tif"), ("b", "b.tif"))
    ]
    assert [name for name, _ in named(files / "**" / "*.tif")] == ["a", "b", "c"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(files):
    (files / "[a].tif").touch()
    assert named(files / "[a].tif") == [("[a]", str(files / "[a].tif"))]
    assert is_single([str(files / "[a].tif")])


def test_one_scene_by_its_path_is_single_and_nothing_else_is(files):
    assert is_single([str(files / "a.tif")])
    assert is_single(["https://host/a.tif?sig=x"])
    for arguments in (["a.tif", "b.tif"], ["*.tif"], ["@list"], ["list.txt"], ["items.json"], []):
        assert not is_single(arguments)


def test_a_text_list_has_comments_names_and_paths_relative_to_it(files):
    listing = files / "scenes.txt"
    listing.write_text("# of today\n\na.tif\ndeep/c.tif\tharbor north\nhttps://host/x/B04.tif?key=secret\tB04 of x\n")
    expected = [
        ("a", str(files / "a.tif")),
        ("harbor north", str(files / "deep/c.tif")),
        ("B04 of x", "/vsicurl/https://host/x/B04.tif"),
    ]
    assert named(listing) == expected
    assert named(f"@{listing}") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.tif\tone\ttwo\n", r"line 1, is not a scene: got a\.tif\tone\ttwo, expected one path or URL per line"),
        ("\n\tname\n", r"line 2, is not a scene"),
        ("a.tif\t../up\n", r"a scene's name must be a valid folder name: got '\.\./up'"),
        ("ftp://host/a.tif\n", r"line 1: Scenes cannot be read from ftp://"),
        ("# nothing\n", "There are no scenes"),
    ],
)
def test_bad_lists_are_said(files, text, message):
    (files / "list.txt").write_text(text)
    with pytest.raises(IfkdError, match=message):
        named(files / "list.txt")


def item(identity, assets, **more):
    return {"type": "Feature", "stac_version": "1.0.0", "id": identity, "assets": assets, **more}


def write_items(folder, *items):
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def test_stac_items_give_their_image_under_their_id(files):
    image = {"href": "./a.tif", "type": TIFF, "roles": ["data"]}
    thumbnail = {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]}
    remote = {"href": "s3://bucket/c.tif", "type": TIFF}
    online = item(
        "four",
        {"image": {"href": "../d.tif", "type": TIFF}},
        links=[{"rel": "self", "href": "https://host/x/y/i.json"}],
    )
    path = write_items(files, item("one", {"image": image, "thumb": thumbnail}), item("two", {"image": remote}), online)
    assert named(path) == [
        ("one", str(files / "a.tif")),
        ("two", "/vsis3/bucket/c.tif"),
        ("four", "/vsicurl/https://host/x/d.tif"),
    ]
    single = files / "item.json"
    single.write_text(json.dumps(item("alone", {"image": image})))
    assert named(single) == [("alone", str(files / "a.tif"))]


def test_the_asset_is_asked_for_when_there_are_several(files):
    bands = {name: {"href": f"{name}.tif", "type": TIFF, "roles": ["data"]} for name in ("red", "visual")}
    path = write_items(files, item("one", bands))
    with pytest.raises(
        DataError, match=r"item one does not have exactly one image.*red \(image/tiff.*Choose the asset"
    ):
        named(path)
    assert named(path, asset="visual") == [("one", str(files / "visual.tif"))]
    with pytest.raises(DataError, match=r"item one has no asset blue: expected one of red, visual"):
        named(path, asset="blue")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "not a STAC item collection"),
        ('{"type": "Collection"}', "not a STAC item collection: got type 'Collection'"),
        ('{"type": "FeatureCollection", "features": [{"id": "x"}]}', "feature 0 is not a STAC item"),
        (
            json.dumps(item("", {"i": {"href": "a.tif", "type": TIFF}})),
            "valid folder name: got '', expected a name of at",
        ),
        (json.dumps(item("a/b", {"i": {"href": "a.tif", "type": TIFF}})), "a scene's name must be a valid folder name"),
        ('{"type": "FeatureCollection", "features": []}', "There are no scenes"),
    ],
)
def test_bad_stac_files_are_said(files, content, message):
    (files / "items.json").write_text(content)
    with pytest.raises(IfkdError, match=message):
        named(files / "items.json")


def test_two_scenes_of_one_name_are_refused_with_both_places(files):
    (files / "deep" / "A.tif").touch()
    with pytest.raises(UsageError, match=r"Two scenes have the name A, .*a\.tif .*deep/A\.tif .*set unique names"):
        named(files / "a.tif", files / "deep" / "A.tif")


def test_two_names_that_differ_by_normalization_are_refused(files):
    for name in ("ha\u0308fen.tif", "h\u00e4fen.tif"):
        (files / name).touch()
    with pytest.raises(UsageError, match="Two scenes have the name"):
        named(files / "ha\u0308fen.tif", files / "h\u00e4fen.tif")


@pytest.mark.parametrize("start", ["azores", "s3_scenes", "gs1", "https", "file", "vsis3", "http_a"])
def test_a_file_whose_name_begins_like_an_address_is_a_file(files, start):
    for suffix in (".txt", ".TXT"):
        (files / f"{start}{suffix}").write_text("a.tif\n")
    (files / f"{start}_1.tif").touch()
    for argument in (f"{start}.txt", f"{start}.TXT", f"@{start}.txt"):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(files)
            assert named(argument) == [("a", "a.tif")]
            assert named(f"{start}_*.tif") == [(f"{start}_1", f"{start}_1.tif")]
            assert is_single([f"{start}_1.tif"])
    (files / "a.json").write_text(json.dumps(item("one", {"i": {"href": f"{start}_1.tif", "type": TIFF}})))
    assert named(files / "a.json") == [("one", str(files / f"{start}_1.tif"))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \n"])
def test_lists_of_any_editor_are_read(files, encoding, end):
    (files / "list.txt").write_bytes(end.join(["a.tif", "", "deep\\c.tif\tnorth", ""]).encode(encoding))
    assert named(files / "list.txt") == [("a", str(files / "a.tif")), ("north", str(files / "deep/c.tif"))]
    (files / "list.txt").write_text("a.tif", encoding="utf-16")
    with pytest.raises(DataError, match="expected UTF-8"):
        named(files / "list.txt")


def test_names_of_result_folders_fit_a_file_system(files):
    long = "海" * 83 + ".tif"
    (files / long).touch()
    (files / ".tif").touch()
    (files / "..tif").touch()
    ((name, _),) = named(files / long)
    assert name == "海" * 66
    assert [name for name, _ in named(files / ".tif")] == ["tif"]
    assert [name for name, _ in named(files / "..tif")] == ["scene"]
    (files / "list.txt").write_text(f"a.tif\t{'海' * 67}\n")
    with pytest.raises(DataError, match="at most 200 bytes"):
        named(files / "list.txt")


def test_a_file_name_that_is_not_utf_8_is_named(files):
    (files / os.fsdecode(b"hafen_\xfc.tif")).touch()
    with pytest.raises(UsageError, match=r"not UTF-8: got .*hafen_\\xfc\.tif"):
        named(files / "hafen*.tif")


def test_nothing_is_no_scene(files):
    with pytest.raises(UsageError, match="There are no scenes"):
        named()
    with pytest.raises(UsageError, match="No scene matches the pattern"):
        named(files / "*.jp2")
    with pytest.raises(UsageError, match="A glob finds only files of this machine"):
        named("s3://bucket/*.tif")
    with pytest.raises(DataError, match="There is no list of scenes"):
        named("@absent")

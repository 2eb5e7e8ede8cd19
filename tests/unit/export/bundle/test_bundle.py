"""Bundles are written atomically, and refused if a file differs from the manifest."""

import ast
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest

from deploy.cli.main import main
from deploy.engines import open_engine
from export.bundle.bundle import Bundle, add_file, new_bundle, open_bundle
from ifkd.core.errors import BundleError, OutputError
from ifkd.core.files import sha256_of


def edit_manifest(bundle: Bundle, change: Any) -> None:
    path = bundle.path / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_exported_bundle_contains_exactly_the_files_of_its_manifest(whole_bundle: Path) -> None:
    bundle = open_bundle(whole_bundle)
    bundle.verify()
    on_disk = {str(path.relative_to(whole_bundle)) for path in whole_bundle.rglob("*") if path.is_file()}
    assert on_disk == {*bundle.manifest.files, "model.json"}
    assert bundle.find("onnx") == ["model.fp16.onnx", "model.onnx"]
    assert bundle.find("onnx", "fp16") == ["model.fp16.onnx"]


def test_one_changed_byte_is_refused(full_copy: Bundle) -> None:
    path = full_copy.path / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    bundle = open_bundle(full_copy.path)
    with pytest.raises(BundleError, match="differs from the manifest"):
        bundle.file("model.onnx")
    bundle.file("model.fp16.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        bundle.verify()


def test_a_missing_file_is_refused(bundle_copy: Bundle) -> None:
    (bundle_copy.path / "config.toml").unlink()
    with pytest.raises(BundleError, match="in the manifest but not in the folder"):
        bundle_copy.file("config.toml")
    with pytest.raises(BundleError, match=r"has no secret\.txt: expected one of"):
        bundle_copy.file("secret.txt")


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "engines/../../outside.onnx"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle_copy: Bundle, name: str) -> None:
    (bundle_copy.path.parent / "outside.onnx").write_bytes(b"x")
    edit_manifest(bundle_copy, lambda content: content["files"].update({name: content["files"]["model.onnx"]}))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle_copy.path)


def test_a_link_that_leaves_the_bundle_is_refused(bundle_copy: Bundle) -> None:
    outside = bundle_copy.path.parent / "outside.onnx"
    (bundle_copy.path / "model.onnx").rename(outside)
    (bundle_copy.path / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle_copy.path)


@pytest.mark.parametrize("keep", [0, 1, 400, -3])
def test_a_truncated_manifest_is_refused(bundle_copy: Bundle, keep: int) -> None:
    path = bundle_copy.path / "model.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"is not a JSON file|has another schema version"):
        open_bundle(bundle_copy.path)


@pytest.mark.parametrize("version", [1, 3])
def test_a_manifest_of_another_schema_is_refused_with_the_way_out(bundle_copy: Bundle, version: int) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(schema_version=version)
        content["defaults"]["selection"] = content["defaults"].pop("postprocess")

    edit_manifest(bundle_copy, change)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle_copy.path)
    assert caught.value.report().splitlines() == [
        f"error: {bundle_copy.path}/model.json has another schema version: got {version}, expected 2.",
        "hint: Export the checkpoint again with `ifkd export`.",
    ]


def test_an_invalid_value_is_refused_with_its_key(bundle_copy: Bundle) -> None:
    edit_manifest(bundle_copy, lambda content: content["input"].update(max_batch=0))
    with pytest.raises(BundleError, match=r"is invalid at input\.max_batch"):
        open_bundle(bundle_copy.path)
    edit_manifest(bundle_copy, lambda content: content.update(surprise=1))
    with pytest.raises(BundleError, match="invalid at"):
        open_bundle(bundle_copy.path)


def test_the_command_line_ends_in_2_without_a_traceback(
    full_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (full_copy.path / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    assert main(["engine", str(full_copy.path), "--precision", "fp32"]) == 2
    assert main(["engine", str(tmp_path / "nowhere")]) == 2
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "differs from the manifest" in first
    assert "is not a bundle" in second


def test_an_interrupted_export_writes_nothing(tmp_path: Path) -> None:
    def interrupted(out: Path) -> None:
        with new_bundle(out) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            assert not out.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_existing_bundle(bundle_copy: Bundle) -> None:
    def failing(out: Path) -> None:
        with new_bundle(out) as folder:
            (folder / "model.json").write_text("{}")
            raise ValueError("no")

    before = sha256_of(bundle_copy.path / "model.json")
    with pytest.raises(ValueError, match="no"):
        failing(bundle_copy.path)
    assert sha256_of(bundle_copy.path / "model.json") == before
    assert [path.name for path in bundle_copy.path.parent.iterdir()] == ["bundle"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(OutputError, match="contains files but no bundle"), new_bundle(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"


def test_a_file_at_the_path_of_the_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(OutputError), new_bundle(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle").read_text() == "a file"


def test_added_files_are_recorded_with_their_digest(bundle_copy: Bundle) -> None:
    (bundle_copy.path / "checks" / "more.json").write_text("{}")
    bundle = add_file(bundle_copy, "checks/more.json", kind="check")
    assert open_bundle(bundle.path).manifest == bundle.manifest
    assert bundle.file("checks/more.json").read_text() == "{}"
    assert "checks/more.json" not in bundle_copy.manifest.files


def test_a_file_of_another_size_or_above_the_limit_is_refused_before_it_is_read(
    full_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("export.bundle.bundle.sha256_of", unread)
    path = full_copy.path / "model.onnx"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1)
    with pytest.raises(BundleError, match=r"differs from the manifest: got \d+ bytes"):
        full_copy.file("model.onnx")
    with path.open("r+b") as stream:
        stream.truncate(3_000_000_000)
    with pytest.raises(BundleError, match=r"exceeds the size limit of ONNX files: got 3\.0 GB"):
        full_copy.file("model.onnx")


def test_external_data_is_refused_before_a_runtime_reads_it(full_copy: Bundle) -> None:
    path = full_copy.path / "model.onnx"
    model = onnx.load(str(path))
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, str(path))
    content = path.read_bytes()
    for location in (b"weights.bin", b"../../key.pm"):
        path.write_bytes(content.replace(b"\x12\x0bweights.bin", b"\x12" + bytes([len(location)]) + location))
        bundle = add_file(full_copy, "model.onnx", kind="onnx", precision="fp32")
        with pytest.raises(BundleError, match=r"has external data, which no digest covers: expected one file"):
            bundle.file("model.onnx")
        with pytest.raises(BundleError, match="has external data"):
            open_engine(bundle)


def test_two_concurrent_exports_to_one_folder_do_not_mix(whole_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"

    def export(mark: str) -> None:
        with new_bundle(out) as folder:
            shutil.copytree(whole_bundle, folder, dirs_exist_ok=True)
            both.wait()
            (folder / "model.safetensors").write_bytes(mark.encode() * 100)
            add_file(Bundle(folder, open_bundle(folder).manifest), "model.safetensors", kind="weights")
            both.wait()

    for _ in range(5):
        both = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(export, ("a", "b")))
        bundle = open_bundle(out)
        bundle.verify()
        assert (out / "model.safetensors").read_bytes() in (b"a" * 100, b"b" * 100)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_no_pickle_is_read_anywhere() -> None:
    readers = {"pickle.load", "pickle.loads", "joblib.load", "dill.load", "torch.load", "np.load", "numpy.load"}
    safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    found = []
    for package in ("ifkd", "export", "deploy"):
        for path in (Path(__file__).parents[4] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if name not in readers:
                    continue
                given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords
                         if isinstance(keyword.value, ast.Constant)}  # fmt: skip
                option, value = safe.get(name, ("", None))
                found.append((f"{path.name}:{node.lineno}", given.get(option) is value and option != ""))
    assert found, "the packages read arrays and weights"
    assert [call for call, safe_call in found if not safe_call] == []

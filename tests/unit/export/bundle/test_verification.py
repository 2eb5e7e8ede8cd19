"""Verification of a bundle: every kind of difference is found, and all of them at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.engine_file import with_engine

from export.bundle.bundle import Bundle, open_bundle
from export.bundle.engine_metadata import engine_metadata_path
from export.bundle.verification import Verification, verify_bundle
from ifkd.core.errors import BundleError
from ifkd.core.files import sha256_of


def edit_manifest(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Verification:
    path = bundle.path / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return verify_bundle(bundle.path)


def test_an_exported_bundle_is_verified_wherever_it_is_copied(bundle_copy: Bundle) -> None:
    found = verify_bundle(with_engine(bundle_copy).path)
    assert found.differences == ()
    assert found.files == len(open_bundle(bundle_copy.path).manifest.files)
    assert found.manifest_sha256 == sha256_of(bundle_copy.path / "model.json")
    assert found.evidence["model.fp16.onnx"].startswith("tensor parity with torch passed, 100.00% of ")
    assert found.evidence["model.yolo.onnx"].startswith("tensor parity with model.onnx passed, 100.00% of ")
    words = "built from model.fp16.onnx by tensorrt 11.4.0 for NVIDIA H100 80GB HBM3"
    assert found.evidence["engines/made.engine"] == words


def test_all_damaged_and_foreign_files_are_listed_at_once(full_copy: Bundle) -> None:
    folder = full_copy.path
    content = bytearray((folder / "model.onnx").read_bytes())
    content[100] ^= 1
    (folder / "model.onnx").write_bytes(content)
    (folder / "config.toml").unlink()
    (folder / "model.fp16.onnx").write_bytes(b"short")
    (folder / "engines").mkdir()
    (folder / "engines" / "other.engine").write_bytes(b"x")
    (folder / ".hidden").touch()
    (folder / "link").symlink_to(folder.parent)
    found = "\n".join(verify_bundle(folder).differences).replace(str(folder), "")
    assert len(found.splitlines()) == 6
    assert "/model.onnx differs from the manifest: got sha256" in found
    assert "/model.fp16.onnx differs from the manifest: got 5 bytes" in found
    assert "/config.toml is in the manifest but not in the folder." in found
    for name in ("engines/other.engine", ".hidden", "link"):
        assert f"/{name} is in the folder but not in the manifest." in found


def test_a_parity_of_other_bytes_is_refused(full_copy: Bundle) -> None:
    """A file that was replaced together with its record in the manifest has no parity of its own."""
    shutil.copyfile(full_copy.path / "model.fp16.onnx", full_copy.path / "model.onnx")

    def change(content: dict[str, Any]) -> None:
        content["files"]["model.onnx"].update(
            {key: content["files"]["model.fp16.onnx"][key] for key in ("sha256", "bytes")}
        )

    (difference,) = edit_manifest(full_copy, change).differences
    assert difference.startswith("The parity of model.onnx was computed from another file: got sha256 ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda one: one["checks"].pop("model.fp16.onnx"), "The manifest records no parity of model.fp16.onnx."),
        (lambda one: one["checks"].pop("model.yolo.onnx"), "The manifest records no parity of model.yolo.onnx."),
        (lambda one: one["checks"]["model.onnx"].update(passed=False), "model.onnx failed: tensor parity with torch "),
        (lambda one: one["checks"]["model.onnx"].pop("onnx_sha256"), "from another file: got no digest, expected "),
        (lambda one: one["checks"].update(a=one["checks"]["model.onnx"]), "describes a, which is no"),
        (lambda one: one["provenance"].update(checkpoint_sha256="0"), "model.safetensors is not the checkpoint"),
    ],
)  # fmt: skip
def test_a_manifest_without_evidence_is_refused(
    bundle_copy: Bundle, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    (difference,) = edit_manifest(bundle_copy, change).differences
    assert expected in difference


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"engine_sha256": "0"}, "engines/made.json describes another file: got sha256 0"),
        ({"onnx_sha256": "0"}, "not built from the bundle's model.fp16.onnx: got fp16 and sha256 0, expected fp16 a"),
        ({"onnx_file": "model.int8.onnx"}, "expected that file"),
        ({"onnx_file": "model.onnx"}, "expected fp32 and sha256"),
    ],
)  # fmt: skip
def test_an_engine_of_another_file_is_refused(bundle_copy: Bundle, values: dict[str, str], expected: str) -> None:
    (difference,) = verify_bundle(with_engine(bundle_copy, **values).path).differences
    assert expected in difference


def test_an_engine_without_usable_metadata_is_refused(bundle_copy: Bundle) -> None:
    bundle = with_engine(with_engine(bundle_copy, "first"), "second")
    name = "engines/first.json"
    (bundle.path / name).unlink()
    other = engine_metadata_path(bundle.path / "engines/second.engine")
    other.write_text("{}")

    def change(content: dict[str, Any]) -> None:
        del content["files"][name]
        content["files"]["engines/second.json"].update(sha256=sha256_of(other), bytes=2)

    missing, invalid = edit_manifest(bundle, change).differences
    assert missing == f"engines/first.engine has no metadata {name}."
    assert "second.json has another schema version: got none, expected 2." in invalid


def test_damaged_metadata_are_not_read(bundle_copy: Bundle) -> None:
    bundle = with_engine(bundle_copy)
    (bundle.path / "engines/made.json").write_text("{}")
    (difference,) = verify_bundle(bundle.path).differences
    assert "made.json differs from the manifest" in difference


def test_all_mistakes_of_an_invalid_manifest_are_listed(bundle_copy: Bundle) -> None:
    def change(content: dict[str, Any]) -> None:
        content["input"].update(max_batch=0)
        content.update(surprise=1)

    found = edit_manifest(bundle_copy, change)
    assert (found.name, found.files) == (None, 0)
    first, second = found.differences
    assert first.startswith("model.json is invalid at input.max_batch (")
    assert second.startswith("model.json is invalid at surprise (")
    (difference,) = edit_manifest(bundle_copy, lambda content: content.update(schema_version=7)).differences
    assert difference.endswith("has another schema version: got 7, expected 2.")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        verify_bundle(tmp_path)

"""Record of a bundle's screen: it survives the manifest, and verification covers its file."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fakes.fake_scene import write_bundle
from fakes.fake_screen import add_screen

from export.bundle.bundle import Bundle, open_bundle
from export.bundle.verification import verify_bundle
from ifkd.core.errors import BundleError


def test_the_manifest_keeps_the_record_and_bundles_without_one_open(bundle_copy: Bundle) -> None:
    assert bundle_copy.manifest.screen is None
    bundle = add_screen(bundle_copy, threshold=0.25, scale=0.25, stride=8)
    assert bundle.manifest.screen is not None
    assert bundle.manifest.screen.threshold == 0.25
    assert bundle.manifest.screen.cell_px == 32.0
    assert bundle.find("screen-onnx", "fp32") == ["screen.onnx"]
    assert bundle.find("onnx", "fp32") == ["model.onnx"]


def test_a_screen_accepts_every_multiple_of_its_stride(tmp_path: Any) -> None:
    bundle = add_screen(write_bundle(tmp_path / "bundle"), stride=8)
    session = onnxruntime.InferenceSession(bundle.file("screen.onnx"), providers=["CPUExecutionProvider"])
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 40), np.uint8)
    (found,) = session.run(["objectness"], {"tiles": tiles})
    expected = tiles.mean(axis=1).reshape(2, 3, 8, 5, 8).max(axis=(2, 4)) / 255
    np.testing.assert_allclose(found, expected[:, None], rtol=1e-5)


def test_verification_covers_the_screen(bundle_copy: Bundle) -> None:
    found = verify_bundle(add_screen(bundle_copy).path)
    assert found.differences == ()
    assert found.evidence["screen.onnx"] == "tensor parity with torch passed, 1 cells within 0"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda one: one["screen"]["checks"].clear(), "The manifest records no parity of screen.onnx."),
        (lambda one: one["screen"]["checks"]["screen.onnx"].update(passed=False), "screen.onnx failed: "),
        (lambda one: one["screen"]["checks"]["screen.onnx"].update(onnx_sha256="0"), "from another file: got sha256 0"),
        (lambda one: one.update(screen=None), "The manifest records no parity of screen.onnx."),
        (lambda one: one["screen"].update(file="other.onnx"), "describes other.onnx, which is no file of the bundle"),
    ],
)  # fmt: skip
def test_a_screen_without_evidence_is_refused(
    bundle_copy: Bundle, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    path = add_screen(bundle_copy).path / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    (difference,) = verify_bundle(path.parent).differences
    assert expected in difference


def test_a_changed_screen_is_refused(bundle_copy: Bundle) -> None:
    bundle = add_screen(bundle_copy)
    (bundle.path / "screen.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"screen\.onnx differs from the manifest"):
        open_bundle(bundle.path).file("screen.onnx")

"""Description of a bundle: the same files give the same bytes, and added files are described."""

import json
from pathlib import Path

from fakes.engine_file import with_engine

from export.bundle.bundle import Bundle, open_bundle
from export.bundle.description import CARD_NAME, ITEM_NAME, describe
from export.bundle.verification import verify_bundle


def test_another_export_of_the_same_files_gives_the_same_description(bundle_copy: Bundle, whole_bundle: Path) -> None:
    later = bundle_copy.manifest.model_copy(update={"created": "2031-01-01T00:00:00+00:00"})
    describe(Bundle(bundle_copy.path, later))
    for name in (ITEM_NAME, CARD_NAME):
        assert (bundle_copy.path / name).read_bytes() == (whole_bundle / name).read_bytes()


def test_an_added_engine_is_described(bundle_copy: Bundle) -> None:
    bundle = describe(with_engine(bundle_copy))
    asset = json.loads(bundle.file(ITEM_NAME).read_text())["assets"]["engines/made.engine"]
    assert asset["href"] == "./engines/made.engine"
    assert asset["file:checksum"] == f"1220{bundle.manifest.files['engines/made.engine'].sha256}"
    assert (asset["mlm:artifact_type"], asset["mlm:accelerator"]) == ("tensorrt", "cuda")
    assert open_bundle(bundle.path).manifest == bundle.manifest
    assert verify_bundle(bundle.path).differences == ()

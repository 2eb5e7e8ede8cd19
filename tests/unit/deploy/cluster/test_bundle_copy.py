"""A bundle that is sent to another machine, and unpacked there to a temporary folder."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.cluster.bundle_copy import BundleCopy
from export.bundle.bundle import MANIFEST_NAME, Bundle


@pytest.fixture
def sent(bundle_copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundleCopy:
    """The copy on a machine that does not have the bundle."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    copy = BundleCopy.of(bundle_copy, with_content=True)
    bundle_copy.path.rename(tmp_path / "elsewhere")
    return copy


@pytest.mark.parametrize("damaged", [MANIFEST_NAME, "model.onnx"])
@pytest.mark.parametrize("how", ["removed", "shortened"])
def test_an_incomplete_folder_of_an_earlier_run_is_replaced(sent: BundleCopy, damaged: str, how: str) -> None:
    bundle = sent.unpack()
    if how == "removed":
        (bundle.path / damaged).unlink()
    else:
        (bundle.path / damaged).write_bytes(b"{")
    again = sent.unpack()
    assert again.path == bundle.path
    again.verify()
    assert list(bundle.path.parent.iterdir()) == [bundle.path]


def test_processes_that_unpack_at_the_same_time_share_the_folder(sent: BundleCopy) -> None:
    with ThreadPoolExecutor(4) as threads:
        bundles = list(threads.map(lambda _: sent.unpack(), range(8)))
    for bundle in bundles:
        bundle.verify()
    assert {bundle.path for bundle in bundles} == set(bundles[0].path.parent.iterdir())

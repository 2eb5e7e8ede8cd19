"""A bundle on its way to machines that may not have it: its place, and its files where they must travel."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from ifkd.core.errors import BundleError
from ifkd.core.files import make_folder, sha256_of


@dataclass(frozen=True, slots=True, eq=False)
class BundleCopy:
    """A bundle as another process gets it."""

    path: Path
    """Where it lies on the machine it comes from."""
    manifest_sha256: str
    content: dict[str, bytes] | None
    """Its files by name; None: every machine has it at `path`."""

    @classmethod
    def of(cls, bundle: Bundle, *, travels: bool) -> "BundleCopy":
        """Return the copy of a bundle, with its files where it travels.

        Raises:
            BundleError: A file was changed.
        """
        names = [MANIFEST_NAME, *bundle.manifest.files] if travels else []
        content = {
            name: (bundle.path / name if name == MANIFEST_NAME else bundle.file(name)).read_bytes() for name in names
        }
        return cls(bundle.path.absolute(), sha256_of(bundle.path / MANIFEST_NAME), content if travels else None)

    def unpacked(self) -> Bundle:
        """Return the bundle on this machine: that at the path if it is the same, or else unpacked beside others.

        Raises:
            BundleError: It is not here and did not travel, or did not arrive as it was sent.
        """
        if self._is_at(self.path):
            return open_bundle(self.path)
        if self.content is None:
            raise BundleError(
                f"The bundle {self.path} is not on this machine, or is another one",
                expected=f"a manifest with sha256 {self.manifest_sha256}",
            )
        folder = Path(tempfile.gettempdir()) / f"ifkd-bundles-{os.getuid()}" / self.manifest_sha256[:16]
        if not self._is_at(folder):
            self._unpack(folder)
        return open_bundle(folder)  # every file's digest is checked when it is used

    def _is_at(self, folder: Path) -> bool:
        manifest = folder / MANIFEST_NAME
        return manifest.is_file() and sha256_of(manifest) == self.manifest_sha256

    def _unpack(self, folder: Path) -> None:
        assert self.content is not None
        make_folder(folder.parent)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            for name, content in self.content.items():
                path = fresh / PurePosixPath(name)
                make_folder(path.parent)
                path.write_bytes(content)
            if not self._is_at(fresh):
                raise BundleError(
                    f"The bundle {self.path} did not arrive as it was sent",
                    got=f"a manifest with sha256 {sha256_of(fresh / MANIFEST_NAME)}",
                    expected=self.manifest_sha256,
                )
            try:
                fresh.rename(folder)
            except OSError:  # another process of this machine was faster
                if not self._is_at(folder):
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

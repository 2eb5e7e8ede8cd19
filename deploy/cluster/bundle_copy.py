"""Send a bundle to machines that may not have it."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from export.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from ifkd.core.errors import BundleError
from ifkd.core.files import make_folder, replace_folder, sha256_of


@dataclass(frozen=True, slots=True, eq=False)
class BundleCopy:
    """A bundle for another process."""

    path: Path
    """Absolute path on the machine of origin."""
    manifest_sha256: str
    content: dict[str, bytes] | None
    """Files by name; None if every machine has the bundle at `path`."""

    @classmethod
    def of(cls, bundle: Bundle, *, with_content: bool) -> "BundleCopy":
        """Return a copy of a bundle, with or without its files.

        Raises:
            BundleError: The digest of a file differs.
        """
        content, manifest = None, bundle.path / MANIFEST_NAME
        if with_content:
            files = {name: bundle.file(name).read_bytes() for name in bundle.manifest.files}
            content = {MANIFEST_NAME: manifest.read_bytes(), **files}
        return cls(bundle.path.absolute(), sha256_of(manifest), content)

    def unpack(self) -> Bundle:
        """Return the bundle on this machine: at its path if it is the same, or else unpacked to a temporary folder.

        Raises:
            BundleError: The bundle is not on this machine and the copy has no files, or the copy is damaged.
        """
        if self._is_at(self.path):
            return open_bundle(self.path)
        if self.content is None:
            expected = f"a manifest with sha256 {self.manifest_sha256}"
            raise BundleError(f"The bundle {self.path} is missing on this machine, or differs", expected=expected)
        folder = Path(tempfile.gettempdir()) / f"ifkd-bundles-{os.getuid()}" / self.manifest_sha256[:16]
        if not self._is_complete(folder, self.content):
            self._write(folder, self.content)
        return open_bundle(folder)  # the digest of each file is checked when it is used

    def _is_at(self, folder: Path) -> bool:
        manifest = folder / MANIFEST_NAME
        return manifest.is_file() and sha256_of(manifest) == self.manifest_sha256

    def _is_complete(self, folder: Path, files: dict[str, bytes]) -> bool:
        """Return whether an unpacked bundle has all files; old files may be removed from temporary folders."""
        paths = {folder / name: len(content) for name, content in files.items()}
        return self._is_at(folder) and all(
            path.is_file() and path.stat().st_size == size for path, size in paths.items()
        )

    def _write(self, folder: Path, files: dict[str, bytes]) -> None:
        make_folder(folder.parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            for name, content in files.items():
                path = temporary / name
                make_folder(path.parent)
                path.write_bytes(content)
            if not self._is_at(temporary):
                got = f"a manifest with sha256 {sha256_of(temporary / MANIFEST_NAME)}"
                problem = f"The copy of the bundle {self.path} is damaged"
                raise BundleError(problem, got=got, expected=self.manifest_sha256)
            try:
                temporary.rename(folder)
            except OSError:
                # Another process of this machine was faster, or the folder is incomplete.
                if not self._is_complete(folder, files):
                    replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

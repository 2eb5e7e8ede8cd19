"""Addresses of rasters that GDAL reads over a network or from an archive."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ifkd.core.errors import SceneError

URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
SUBDATASET = re.compile(r"[A-Z][A-Z0-9_]+:(?!//).+", re.DOTALL)
"""GDAL's name of a part of a file, such as `GTIFF_DIR:2:pages.tif` or `NETCDF:sea.nc:wind`."""
HTTP_PREFIXES = {scheme: f"/vsicurl/{scheme}://" for scheme in ("http", "https")}
VSI_PREFIXES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", **HTTP_PREFIXES}
"""URL scheme -> prefix of GDAL's virtual file system."""
HTTP_OPTIONS = {"GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5"}
"""GDAL options that repeat failed requests."""


@dataclass(frozen=True, slots=True)
class RasterAddress:
    """A raster that is not a local file."""

    gdal_path: str
    """Path for GDAL, for example `/vsicurl/https://...`."""

    @property
    def name(self) -> str:
        """The last part of the path; for a part of a file, the names of both, such as `pages_2`."""
        if SUBDATASET.fullmatch(self.gdal_path) is None:
            return PurePosixPath(str(self)).name
        pieces = [piece for piece in re.split(r'[:"]+', self.gdal_path)[1:] if piece]
        file = next((piece for piece in pieces if re.search(r"[./]", piece)), pieces[0])
        parts = [re.sub(r"\W+", "_", piece).strip("_") for piece in pieces if piece != file]
        return "_".join([PurePosixPath(file).stem, *parts])

    @property
    def url(self) -> str:
        """The URL without its query string, or the path for GDAL where there is no URL."""
        path = str(self)
        for scheme, prefix in VSI_PREFIXES.items():
            if path.startswith(prefix):
                return f"{scheme}://{path.removeprefix(prefix)}"
        return path

    def __str__(self) -> str:
        """Return the path without its query string, which may contain a key."""
        return self.gdal_path.split("?", 1)[0]


def is_address(source: str) -> bool:
    """Return whether a source is a URL, or a path or subdataset of GDAL (/vsi..., GTIFF_DIR:2:a.tif), and no file."""
    is_gdal = source.startswith("/vsi") or SUBDATASET.fullmatch(source) is not None
    return URL.fullmatch(source) is not None or (is_gdal and not Path(source).exists())


def parse_source(source: str, folder: Path = Path()) -> Path | RasterAddress:
    """Return the local path or the address of a raster (s3://, https://, /vsis3/ and others).

    The local file that a path of GDAL contains is relative to `folder`, and absolute in the result.

    Raises:
        SceneError: The URL scheme is not supported.
    """
    if not is_address(source):
        return Path(source)
    url = URL.fullmatch(source)
    if url is None:
        return RasterAddress(_with_absolute_file(source, folder))
    scheme, rest = url[1].lower(), url[2]
    if scheme == "file":
        return Path(unquote(rest))
    if scheme not in VSI_PREFIXES:
        raise SceneError(
            f"Scenes cannot be read from {scheme}://",
            got=source,
            expected=f"a path, one of {', '.join(f'{name}://' for name in VSI_PREFIXES)}, or a path of GDAL (/vsi...)",
        )
    return RasterAddress(VSI_PREFIXES[scheme] + rest)


def _with_absolute_file(source: str, folder: Path) -> str:
    for piece in re.split(r'[:"]+|/vsi[a-z0-9]+/', source):
        for file in (Path(piece), *Path(piece).parents):  # an archive is followed by the path in it
            if (folder / file).is_file():
                return source.replace(str(file), str((folder / file).absolute()), 1)
    return source

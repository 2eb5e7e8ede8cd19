"""Addresses of rasters that GDAL reads over a network or from an archive."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ifkd.core.errors import SceneError

URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
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
        """The last part of the path."""
        return PurePosixPath(str(self)).name

    def __str__(self) -> str:
        """Return the path without its query string, which may contain a key."""
        return self.gdal_path.split("?", 1)[0]


def is_address(source: str) -> bool:
    """Return whether a source is a URL or a path of GDAL (/vsi...), and not a file of this machine."""
    return URL.fullmatch(source) is not None or (source.startswith("/vsi") and not Path(source).exists())


def parse_source(source: str) -> Path | RasterAddress:
    """Return the local path or the address of a raster (s3://, https://, /vsis3/ and others).

    Raises:
        SceneError: The URL scheme is not supported.
    """
    if not is_address(source):
        return Path(source)
    url = URL.fullmatch(source)
    if url is None:
        return RasterAddress(source)
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

"""Addresses of rasters that GDAL reads over a network or from an archive."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ifkd.core.errors import SceneError

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


def parse_source(source: str) -> Path | RasterAddress:
    """Return the local path or the address of a raster (s3://, https://, /vsis3/ and others).

    Raises:
        SceneError: The URL scheme is not supported.
    """
    if source.startswith("/vsi"):
        return RasterAddress(source)
    scheme, separator, rest = source.partition("://")
    if not separator:
        return Path(source)
    if scheme == "file":
        return Path(rest)
    if scheme not in VSI_PREFIXES:
        raise SceneError(
            f"Scenes cannot be read from {scheme}://",
            got=source,
            expected=f"a path, one of {', '.join(f'{name}://' for name in VSI_PREFIXES)}, or a path of GDAL (/vsi...)",
        )
    return RasterAddress(VSI_PREFIXES[scheme] + rest)

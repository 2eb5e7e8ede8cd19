"""Rasters as they lie on disk or in memory: values and validity of any window, in the raster's own type."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window

SMOOTH = Resampling.average
NEAREST = Resampling.nearest


ADDRESS_ROOTS = {
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
}
"""How GDAL calls the places that an address may begin with."""
HTTP_OPTIONS = {"GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5"}
"""A network that fails for a moment leaves no hole in a scene."""


@dataclass(frozen=True, slots=True)
class RasterAddress:
    """Where a raster lies that is no file of this machine; make one with `located`."""

    gdal_path: str
    """As GDAL opens it, `/vsicurl/https://...` for example."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(str(self)).name

    def __str__(self) -> str:
        """Return it without what follows a question mark, which may hold a key."""
        return self.gdal_path.split("?", 1)[0]


def located(source: str) -> Path | RasterAddress:
    """Return where a raster lies: a file of this machine, or an address (s3://, https://, /vsis3/ and the like).

    Raises:
        SceneError: It begins with a scheme that nothing here reads.
    """
    if source.startswith("/vsi"):
        return RasterAddress(source)
    scheme, mark, rest = source.partition("://")
    if not mark:
        return Path(source)
    if scheme == "file":
        return Path(rest)
    if scheme not in ADDRESS_ROOTS:
        raise SceneError(
            f"Scenes cannot be read from {scheme}://",
            got=source,
            expected=f"a path, one of {', '.join(f'{name}://' for name in ADDRESS_ROOTS)}, or a path of GDAL (/vsi...)",
        )
    return RasterAddress(ADDRESS_ROOTS[scheme] + rest)


class Raster(ABC):
    """What a scene reads from."""

    name: str
    """The file's name, for messages and outputs."""
    driver: str
    size: tuple[int, int]
    """(height, width), pixels."""
    dtype: str
    bands: tuple[int, ...]
    """Numbers of the bands that carry an image, from 1; alpha is left out."""
    block_rows: int
    """Rows that are decoded together."""
    block_columns: int
    """Columns that are decoded together."""
    may_have_gaps: bool
    """Whether some pixels may be without data."""
    nodata: float | None
    handle: Any
    """rasterio's open dataset, from which a georeference may be read; None in memory."""

    @abstractmethod
    def read(
        self,
        bands: tuple[int, ...],
        window: Window,
        *,
        shape: tuple[int, int] | None = None,
        smooth: bool = False,
    ) -> tuple[Array, Array | None]:
        """Return values [bands, height, width] of a window inside the raster and where they are valid.

        Args:
            bands: Which bands, from 1.
            window: Which part.
            shape: (height, width) to thin the window to.
            smooth: Average when thinning, instead of picking pixels.

        Returns:
            The values, and bool [height, width] that is false where no band has data; None: all are valid.

        Raises:
            SceneError: The part cannot be read.
        """

    def files(self) -> dict[str, str]:
        """Return size and time of change of every file that this consists of, by name; nothing in memory."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Give back what is open."""


class RasterFile(Raster):
    """A raster that GDAL reads: GeoTIFF, COG, VRT, PNG, JPEG and the like; `drivers` narrows the formats."""

    def __init__(
        self, path: Path | RasterAddress, *, nodata: float | None = None, drivers: Sequence[str] | None = None
    ) -> None:
        self._path = path
        self._dataset = _open(path, drivers) if isinstance(path, Path) else _open_address(path)
        dataset = self._dataset
        self.name = path.name
        self.driver = dataset.driver
        self.size = (dataset.height, dataset.width)
        self.block_rows, self.block_columns = map(int, dataset.block_shapes[0])
        self.nodata = dataset.nodata if nodata is None else nodata
        self.handle = dataset
        self._palette = _palette(dataset)
        self.dtype = "uint8" if self._palette is not None else dataset.dtypes[0]
        image = [b for b, role in zip(dataset.indexes, dataset.colorinterp, strict=True) if role != ColorInterp.alpha]
        self.bands = (1, 2, 3) if self._palette is not None else tuple(image)
        # A nodata value is compared here; masks and alpha bands are read from the file.
        self._has_mask = any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)
        self.may_have_gaps = self._has_mask or self.nodata is not None or np.dtype(self.dtype).kind == "f"

    def read(
        self,
        bands: tuple[int, ...],
        window: Window,
        *,
        shape: tuple[int, int] | None = None,
        smooth: bool = False,
    ) -> tuple[Array, Array | None]:
        """Return values and validity; see `Raster.read`."""
        part = RasterWindow(window.left, window.top, window.width, window.height)
        paletted = self._palette is not None
        how = SMOOTH if smooth and not paletted else NEAREST
        indexes = [1] if paletted else list(bands)
        try:
            if shape is None:
                values = self._dataset.read(indexes, window=part)
                mask = self._dataset.read_masks(1, window=part) if self._has_mask else None
            else:
                out = (len(indexes), *shape)
                values = self._dataset.read(indexes, window=part, out_shape=out, resampling=how)
                mask = (
                    self._dataset.read_masks(1, window=part, out_shape=shape, resampling=NEAREST)
                    if self._has_mask
                    else None
                )
        except (RasterioError, OSError) as error:
            raise SceneError(
                f"{self._path} cannot be read at rows {window.top} to {window.bottom}, columns {window.left} to "
                f"{window.right} ({error.__cause__ or error})",
                hint="The file may be truncated or damaged: compare its size with the source's, or copy it again.",
            ) from error
        valid = None if mask is None else mask > 0
        if self.nodata is not None:
            has_data = _has_data(values, self.nodata)
            valid = has_data if valid is None else valid & has_data
        if self._palette is not None:
            colors = self._palette[values[0]].transpose(2, 0, 1)
            values = colors[[band - 1 for band in bands]]
        return values, valid

    def files(self) -> dict[str, str]:
        """Return size and time of change of every file; see `Raster.files`."""
        if isinstance(self._path, RasterAddress):
            return {self.name: f"{self._digest_of_blocks()} in its first, middle and last block"}
        states = {name: Path(name).stat() for name in self._dataset.files if Path(name).is_file()}
        return {
            Path(name).name: f"{state.st_size} bytes of {datetime.fromtimestamp(state.st_mtime, UTC).isoformat()}"
            for name, state in states.items()
        }

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def _digest_of_blocks(self) -> str:
        """Return the SHA-256 of three blocks, by which a file elsewhere is known again without reading all of it."""
        height, width = self.size
        digest = hashlib.sha256()
        for share in (0.0, 0.5, 1.0):
            top, left = int(share * (height - 1)), int(share * (width - 1))
            top, left = top - top % self.block_rows, left - left % self.block_columns
            part = Window(top, left, min(self.block_rows, height - top), min(self.block_columns, width - left))
            try:
                digest.update(np.ascontiguousarray(self.read(self.bands[:1], part)[0]).tobytes())
            except SceneError:
                digest.update(b"unreadable")
        return digest.hexdigest()


class RasterArray(Raster):
    """A raster in memory."""

    def __init__(self, pixels: Array, *, nodata: float | None = None) -> None:
        if pixels.ndim not in {2, 3} or pixels.dtype.kind not in "uif" or 0 in pixels.shape:
            raise SceneError(
                "This array is no scene",
                got=f"{pixels.dtype} {list(pixels.shape)}",
                expected="numbers [height, width] or [height, width, bands], none of them 0",
            )
        self._pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        self.name = "array"
        self.driver = "array"
        self.size = (pixels.shape[0], pixels.shape[1])
        self.dtype = str(pixels.dtype)
        self.bands = tuple(range(1, self._pixels.shape[2] + 1))
        self.block_rows, self.block_columns = 1, pixels.shape[1]
        self.nodata = nodata
        self.may_have_gaps = nodata is not None or pixels.dtype.kind == "f"
        self.handle = None

    def read(
        self,
        bands: tuple[int, ...],
        window: Window,
        *,
        shape: tuple[int, int] | None = None,
        smooth: bool = False,  # noqa: ARG002 - arrays are thinned by picking pixels
    ) -> tuple[Array, Array | None]:
        """Return values and validity; see `Raster.read`."""
        part = self._pixels[window.top : window.bottom, window.left : window.right]
        if shape is not None:
            rows = (np.arange(shape[0]) + 0.5) * window.height / shape[0]
            columns = (np.arange(shape[1]) + 0.5) * window.width / shape[1]
            part = part[rows.astype(int)[:, None], columns.astype(int)]
        values = part[:, :, [band - 1 for band in bands]].transpose(2, 0, 1)
        return values, None if self.nodata is None else _has_data(values, self.nodata)

    def close(self) -> None:
        """Nothing is open."""


def _open_address(address: RasterAddress) -> Any:
    # Files beside it are looked for by name: listing what lies there may take longer than the scene.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE", **HTTP_OPTIONS):
        try:
            dataset = _opened(address.gdal_path)
        except (RasterioError, OSError) as error:
            raise SceneError(
                f"{address} cannot be opened ({str(error).replace(address.gdal_path, str(address))})",
                hint="Check the address and the rights; GDAL takes keys from its own variables, such as "
                "AWS_ACCESS_KEY_ID.",
            ) from error
    if problem := _unfit(dataset):
        dataset.close()
        raise SceneError(f"{address} {problem}")
    return dataset


def _opened(path: Path | str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _open(path: Path, drivers: Sequence[str] | None) -> Any:
    if not path.exists():
        raise SceneError(f"There is no scene {path}", hint="Check the path.")
    if not path.is_file():
        raise SceneError(f"{path} is a folder, not a scene", hint="Name a raster file, such as a GeoTIFF.")
    try:
        dataset = _opened(path)
    except (RasterioError, OSError) as error:
        raise SceneError(
            f"{path} is not a raster that can be read ({error})",
            expected="a GeoTIFF, VRT, PNG, JPEG or another format of GDAL, whole from its first byte to its last",
        ) from error
    problem = _unfit(dataset)
    if drivers is not None and dataset.driver not in drivers:
        problem = f"is a {dataset.driver} file, where one of {', '.join(drivers)} is expected"
    if problem:
        dataset.close()
        raise SceneError(f"{path} {problem}")
    return dataset


def _unfit(dataset: Any) -> str | None:
    if dataset.count == 0:
        inner = len(dataset.subdatasets)
        more = f"; it holds {inner} rasters inside, so extract one with gdal_translate" if inner else ""
        return f"has no bands{more}"
    kinds = {np.dtype(name).kind if name in np.sctypeDict else "?" for name in dataset.dtypes}
    if not kinds <= set("uif"):
        return f"has pixels of type {', '.join(sorted(set(dataset.dtypes)))}, where whole or real numbers are expected"
    if len(set(dataset.dtypes)) > 1:
        return f"has bands of several types ({', '.join(dataset.dtypes)}), where one is expected"
    return None


def _palette(dataset: Any) -> Array | None:
    """Return the colors of a paletted raster, uint8 [256, 3], or None."""
    if dataset.colorinterp[0] != ColorInterp.palette or dataset.dtypes[0] != "uint8":
        return None
    colors = np.zeros((256, 3), np.uint8)
    for value, color in dataset.colormap(1).items():
        colors[value] = color[:3]
    return colors


def _has_data(values: Array, nodata: float) -> Array:
    """Return where at least one band holds something else than `nodata`: one dark band is no gap."""
    if np.isnan(nodata):
        gaps = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    else:
        gaps = values == nodata
    return np.asarray(~gaps.all(axis=0))

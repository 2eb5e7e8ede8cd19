"""Read windows of rasters in files and in memory, with a mask of valid pixels."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress


class Raster(ABC):
    """A raster whose windows can be read."""

    name: str
    """File name, for messages and outputs."""
    driver: str
    size: tuple[int, int]
    """(height, width), pixels."""
    dtype: str
    bands: tuple[int, ...]
    """Band numbers from 1, without alpha."""
    block_rows: int
    block_columns: int
    """Size of the internal blocks, pixels."""
    may_have_gaps: bool
    """Whether pixels may have no data."""
    nodata: float | None
    dataset: Any
    """The open rasterio dataset; None in memory."""

    @abstractmethod
    def read(
        self, bands: tuple[int, ...], window: Window, *, shape: tuple[int, int] | None = None, average: bool = False
    ) -> tuple[Array, Array | None]:
        """Return the values [bands, height, width] and the valid pixels of a window inside the raster.

        The window is decimated to a `shape` (height, width): to its nearest pixels, or to the `average`. Valid pixels
        are bool [height, width], false where no band has data, or None if all are valid. Bands count from 1.

        Raises:
            SceneError: The window cannot be read.
        """

    def files(self) -> dict[str, str]:
        """Return the size and modification time of each file of the raster, by name; empty in memory."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Close the dataset."""


class RasterFile(Raster):
    """A raster that GDAL reads: GeoTIFF, COG, VRT, PNG, JPEG and others; `drivers` restricts the formats."""

    def __init__(
        self, path: Path | RasterAddress, *, nodata: float | None = None, drivers: Sequence[str] | None = None
    ) -> None:
        self._path = path
        self.dataset = dataset = _open_file(path) if isinstance(path, Path) else _open_address(path)
        if problem := _problem(dataset, drivers):
            dataset.close()
            raise SceneError(f"{path} {problem}")
        self.name = path.name
        self.driver = dataset.driver
        self.size = (dataset.height, dataset.width)
        self.block_rows, self.block_columns = map(int, dataset.block_shapes[0])
        self.nodata = dataset.nodata if nodata is None else nodata
        self._palette = _palette(dataset)
        self.dtype = "uint8" if self._palette is not None else dataset.dtypes[0]
        image = [b for b, role in zip(dataset.indexes, dataset.colorinterp, strict=True) if role != ColorInterp.alpha]
        self.bands = (1, 2, 3) if self._palette is not None else tuple(image)
        self._has_mask = any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)
        self.may_have_gaps = self._has_mask or self.nodata is not None or np.dtype(self.dtype).kind == "f"

    def read(
        self, bands: tuple[int, ...], window: Window, *, shape: tuple[int, int] | None = None, average: bool = False
    ) -> tuple[Array, Array | None]:
        """Return values and valid pixels; see `Raster.read`."""
        part = RasterWindow(window.left, window.top, window.width, window.height)
        paletted = self._palette is not None
        resampling = Resampling.average if average and not paletted else Resampling.nearest
        indexes = [1] if paletted else list(bands)
        out_shape = None if shape is None else (len(indexes), *shape)
        try:
            values = self.dataset.read(indexes, window=part, out_shape=out_shape, resampling=resampling)
            mask = self.dataset.read_masks(1, window=part, out_shape=shape) if self._has_mask else None
        except (RasterioError, OSError) as error:
            raise SceneError(
                f"{self._path} cannot be read at rows {window.top} to {window.bottom}, columns {window.left} to "
                f"{window.right} ({error.__cause__ or error})",
                hint="The file may be truncated or damaged. Compare its size with the original, or copy it again.",
            ) from error
        valid = None if mask is None else mask > 0
        if self.nodata is not None:
            has_data = _has_data(values, self.nodata)
            valid = has_data if valid is None else valid & has_data
        if self._palette is not None:
            values = self._palette[values[0]].transpose(2, 0, 1)[[band - 1 for band in bands]]
        return values, valid

    def files(self) -> dict[str, str]:
        """Return size and modification time of each file; see `Raster.files`."""
        if isinstance(self._path, RasterAddress):
            return {self.name: f"{self._digest_of_blocks()} in its first, middle and last block"}
        states = {Path(name).name: Path(name).stat() for name in self.dataset.files if Path(name).is_file()}
        times = {name: datetime.fromtimestamp(state.st_mtime, UTC).isoformat() for name, state in states.items()}
        return {name: f"{state.st_size} bytes of {times[name]}" for name, state in states.items()}

    def close(self) -> None:
        """Close the dataset."""
        self.dataset.close()

    def _digest_of_blocks(self) -> str:
        """Return the SHA-256 of three blocks, which identifies a remote file without reading it completely."""
        height, width = self.size
        digest = hashlib.sha256()
        for fraction in (0.0, 0.5, 1.0):
            top, left = int(fraction * (height - 1)), int(fraction * (width - 1))
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
                "The array is not a scene",
                got=f"{pixels.dtype} {list(pixels.shape)}",
                expected="numbers [height, width] or [height, width, bands] without empty axes",
            )
        self._pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        self.name = self.driver = "array"
        self.size = (pixels.shape[0], pixels.shape[1])
        self.dtype = str(pixels.dtype)
        self.bands = tuple(range(1, self._pixels.shape[2] + 1))
        self.block_rows, self.block_columns = 1, pixels.shape[1]
        self.nodata = nodata
        self.may_have_gaps = nodata is not None or pixels.dtype.kind == "f"
        self.dataset = None

    def read(
        self,
        bands: tuple[int, ...],
        window: Window,
        *,
        shape: tuple[int, int] | None = None,
        average: bool = False,  # noqa: ARG002 - arrays are decimated to the nearest pixels
    ) -> tuple[Array, Array | None]:
        """Return values and valid pixels; see `Raster.read`."""
        part = self._pixels[window.top : window.bottom, window.left : window.right]
        if shape is not None:
            rows = (np.arange(shape[0]) + 0.5) * window.height / shape[0]
            columns = (np.arange(shape[1]) + 0.5) * window.width / shape[1]
            part = part[rows.astype(int)[:, None], columns.astype(int)]
        values = part[:, :, [band - 1 for band in bands]].transpose(2, 0, 1)
        return values, None if self.nodata is None else _has_data(values, self.nodata)

    def close(self) -> None:
        """Do nothing."""


def _open_address(address: RasterAddress) -> Any:
    # Without the option GDAL lists the remote folder, which may take longer than reading the scene.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE", **HTTP_OPTIONS):
        try:
            return _open_dataset(address.gdal_path)
        except (RasterioError, OSError) as error:
            raise SceneError(
                f"{address} cannot be opened ({str(error).replace(address.gdal_path, str(address))})",
                hint="Check the address and the permissions. GDAL reads keys from environment variables such as "
                "AWS_ACCESS_KEY_ID.",
            ) from error


def _open_dataset(path: Path | str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _open_file(path: Path) -> Any:
    if not path.exists():
        raise SceneError(f"There is no scene {path}", hint="Check the path.")
    if not path.is_file():
        raise SceneError(f"{path} is a folder, not a scene", hint="Give a raster file, such as a GeoTIFF.")
    try:
        return _open_dataset(path)
    except (RasterioError, OSError) as error:
        raise SceneError(
            f"{path} is not a raster that can be read ({error})",
            expected="a complete GeoTIFF, VRT, PNG, JPEG or other file that GDAL reads",
        ) from error


def _problem(dataset: Any, drivers: Sequence[str] | None) -> str | None:
    """Return the reason why the pixels of a dataset cannot be read, as the rest of a sentence."""
    if drivers is not None and dataset.driver not in drivers:
        return f"is a {dataset.driver} file, where one of {', '.join(drivers)} is expected"
    if dataset.count == 0:
        count = len(dataset.subdatasets)
        return "has no bands" + (f"; it contains {count} subdatasets: extract one with gdal_translate" if count else "")
    kinds = {np.dtype(name).kind if name in np.sctypeDict else "?" for name in dataset.dtypes}
    if not kinds <= set("uif"):
        types = ", ".join(sorted(set(dataset.dtypes)))
        return f"has pixels of type {types}, where integers or real numbers are expected"
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
    """Return where at least one band differs from `nodata`, bool [height, width]."""
    gaps = np.isnan(values) if np.isnan(nodata) else values == nodata
    return np.asarray(~gaps.all(axis=0))

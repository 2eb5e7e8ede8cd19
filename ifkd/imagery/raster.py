"""Read windows of rasters in files and in memory, with a mask of valid pixels."""

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress
from ifkd.imagery.band_roles import BandRoles, roles_of
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.validity import Palette, combined, nodata_mask, typed_nodata

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError, TypeError, LookupError)
"""Exceptions of rasterio for damaged files and for metadata that it cannot convert."""
ALWAYS_ALPHA = ("PNG", "WEBP", "GIF")
"""GDAL formats whose second or fourth band is always alpha."""
ALPHA_SAMPLE_PX, ALPHA_SAMPLES = 128, 5
"""Side of the windows in which an alpha band is checked, and their number per side of the raster."""


class Raster(ABC):
    """A raster whose windows can be read."""

    name: str
    """File name, for messages and outputs."""
    driver: str
    size: tuple[int, int]
    """(height, width), pixels."""
    dtype: str
    """Data type of the values that `read` returns; float for complex numbers, of which it returns the magnitude."""
    bands: tuple[int, ...]
    """Band numbers from 1, without alpha."""
    roles: BandRoles
    block_rows: int
    block_columns: int
    """Size of the internal blocks, pixels."""
    may_have_gaps: bool
    """Whether pixels may have no data."""
    nodata: tuple[float | None, ...]
    """Value of pixels without data, of each band of the file; None for all bands of a palette."""
    remarks: tuple[str, ...] = ()
    """Assumptions about the raster that may be wrong, for the user."""
    overview_sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) of the overviews, the largest first, if they are certainly not older than the pixels."""
    dataset: Any
    """The open rasterio dataset; None in memory."""

    @abstractmethod
    def read(self, bands: tuple[int, ...], window: Window) -> tuple[Array, Array | None]:
        """Return the values [bands, height, width] and the valid pixels of a window inside the raster.

        Valid pixels are bool [height, width], false where no band has data; or bool [bands, height, width] for gaps of
        single bands; or None if all are valid. Bands count from 1.

        Raises:
            SceneError: The window cannot be read.
        """

    def files(self) -> dict[str, str]:
        """Return the size and modification time of each file of the raster, by name; empty in memory.

        Files with the same name in several folders are listed by their paths, relative to the raster.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """Close the dataset."""


class RasterFile(Raster):
    """A raster that GDAL reads: GeoTIFF, COG, VRT, PNG, JPEG and others; `drivers` restricts the formats.

    With `overview`, it is the overview of this number, from 0, instead of the full resolution.
    """

    def __init__(
        self,
        path: Path | RasterAddress,
        *,
        imagery: ImageryOptions | None = None,
        drivers: Sequence[str] | None = None,
        overview: int | None = None,
    ) -> None:
        self._path = path
        level = {} if overview is None else {"overview_level": overview}
        opened = _open_file(path, **level) if isinstance(path, Path) else _open_address(path, **level)
        self.dataset = dataset = opened
        self.name = path.name
        try:
            _require_readable(dataset, path, drivers)
            self._describe(dataset, imagery or ImageryOptions())
        except GDAL_ERRORS as error:
            dataset.close()
            raise SceneError(f"{path} has metadata that cannot be read ({error})") from error
        except BaseException:
            dataset.close()
            raise

    def _describe(self, dataset: Any, imagery: ImageryOptions) -> None:
        self.driver = dataset.driver
        self.size = (dataset.height, dataset.width)
        self.block_rows, self.block_columns = map(int, dataset.block_shapes[0])
        self.overview_sizes = _overview_sizes(dataset)
        self._nodata = tuple(imagery.nodata if one is None else one for one in dataset.nodatavals)
        self._palette = _palette(dataset)
        self._flags = dataset.mask_flag_enums
        self._dataset_mask = _band_with_dataset_mask(self._flags)
        sample = None if self.driver in ALWAYS_ALPHA else self._sample_alpha
        self.roles = roles_of(dataset.colorinterp, imagery, name=self.name, sample=sample)
        self.bands = (1, 2, 3) if self._palette is not None else self.roles.image
        self.nodata = self._nodata if self._palette is None else (None,) * 3
        self.dtype = dataset.dtypes[0] if self._palette is None else "uint8"
        self._is_complex = self.dtype.startswith("complex")
        if self._is_complex:
            self.dtype = "float64" if self.dtype == "complex128" else "float32"
        self.may_have_gaps = (
            self.roles.alpha is not None
            or self._dataset_mask is not None
            or any(not flags for flags in self._flags)
            or any(value is not None for value in self._nodata)
            or np.dtype(self.dtype).kind == "f"
            or (self._palette is not None and not self._palette.opaque.all())
        )
        self.remarks = (
            *self.roles.remarks,
            *_remarks_on_pages(dataset, self.name),
            *_remarks_on_nodata(imagery, self.dtype, self.name),
        )

    def read(self, bands: tuple[int, ...], window: Window) -> tuple[Array, Array | None]:
        """Return values and valid pixels; see `Raster.read`."""
        part = RasterWindow(window.left, window.top, window.width, window.height)
        indexes = [1] if self._palette is not None else list(bands)
        own_mask = any(not self._flags[band - 1] for band in indexes)
        mask: Array | None = None
        try:
            values = self.dataset.read(indexes, window=part)
            if self.roles.alpha is not None:
                mask = self.dataset.read(self.roles.alpha, window=part) > 0
            if self._dataset_mask is not None:
                mask = combined(mask, self.dataset.read_masks(self._dataset_mask, window=part) > 0)
            if own_mask:
                mask = combined(mask, self.dataset.read_masks(indexes, window=part) > 0)
        except GDAL_ERRORS as error:
            raise SceneError(
                f"{self._path} cannot be read at rows {window.top} to {window.bottom}, columns {window.left} to "
                f"{window.right} ({error.__cause__ or error})",
                hint="The file may be truncated or damaged. Compare its size with the original, or copy it again.",
            ) from error
        mask = combined(mask, nodata_mask(values, [self._nodata[band - 1] for band in indexes]))
        if self._palette is not None:
            if not self._palette.opaque.all():
                mask = combined(mask, self._palette.opaque[values[0]])
            values = self._palette.colors[values[0]].transpose(2, 0, 1)[[band - 1 for band in bands]]
        return (np.abs(values) if self._is_complex else values), mask

    def _sample_alpha(self, bands: tuple[int, ...]) -> list[Array]:
        """Return values of bands at pixels spread over the raster, or nothing if a part cannot be read."""
        height, width = self.size
        sides = min(height, ALPHA_SAMPLE_PX), min(width, ALPHA_SAMPLE_PX)
        places = np.linspace((0, 0), (height - sides[0], width - sides[1]), ALPHA_SAMPLES).round().astype(int)
        try:
            parts = [
                self.dataset.read(list(bands), window=RasterWindow(int(left), int(top), sides[1], sides[0]))
                for top in dict.fromkeys(places[:, 0].tolist())
                for left in dict.fromkeys(places[:, 1].tolist())
            ]
        except GDAL_ERRORS:  # the declared role stands; reading the pixels reports the error
            return [np.zeros(0)] * len(bands)
        return list(np.concatenate([part.reshape(len(bands), -1) for part in parts], axis=1))

    def files(self) -> dict[str, str]:
        """Return size and modification time of each file; see `Raster.files`."""
        if isinstance(self._path, RasterAddress):
            return {self.name: f"{self._digest_of_blocks()} in its first, middle and last block"}
        paths = [path for path in map(Path, dict.fromkeys(self.dataset.files)) if path.is_file()]
        count, folder = Counter(path.name for path in paths), self._path.parent
        names = [path.name if count[path.name] == 1 else os.path.relpath(path, folder) for path in paths]
        states = {name: path.stat() for name, path in zip(names, paths, strict=True)}
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

    def __init__(self, pixels: Array, *, imagery: ImageryOptions | None = None) -> None:
        if pixels.ndim not in {2, 3} or pixels.dtype.kind not in "uifc" or 0 in pixels.shape:
            raise SceneError(
                "The array is not a scene",
                got=f"{pixels.dtype} {list(pixels.shape)}",
                expected="numbers [height, width] or [height, width, bands] without empty axes",
            )
        imagery = imagery or ImageryOptions()
        self._pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        self.name = self.driver = "array"
        self.size = (pixels.shape[0], pixels.shape[1])
        self.dtype = str(pixels.real.dtype)
        declared = [ColorInterp.undefined] * self._pixels.shape[2]
        self.roles = roles_of(declared, imagery, name=self.name, sample=None)
        self.bands = self.roles.image
        self.block_rows, self.block_columns = 1, pixels.shape[1]
        self.nodata = (imagery.nodata,) * self._pixels.shape[2]
        self.may_have_gaps = (
            imagery.nodata is not None or self.roles.alpha is not None or np.dtype(self.dtype).kind == "f"
        )
        self.remarks = (*self.roles.remarks, *_remarks_on_nodata(imagery, self.dtype, self.name))
        self.dataset = None

    def read(self, bands: tuple[int, ...], window: Window) -> tuple[Array, Array | None]:
        """Return values and valid pixels; see `Raster.read`."""
        part = self._pixels[window.top : window.bottom, window.left : window.right]
        values = part[:, :, [band - 1 for band in bands]].transpose(2, 0, 1)
        mask = None if self.roles.alpha is None else part[:, :, self.roles.alpha - 1] > 0
        mask = combined(mask, nodata_mask(values, [self.nodata[band - 1] for band in bands]))
        return (np.abs(values) if values.dtype.kind == "c" else values), mask

    def close(self) -> None:
        """Do nothing."""


def _open_address(address: RasterAddress, **options: int) -> Any:
    # Without the option GDAL lists the remote folder, which may take longer than reading the scene.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE", **HTTP_OPTIONS):
        try:
            return _open_dataset(address.gdal_path, **options)
        except GDAL_ERRORS as error:
            raise SceneError(
                f"{address} cannot be opened ({str(error).replace(address.gdal_path, str(address))})",
                hint="Check the address and the permissions. GDAL reads keys from environment variables such as "
                "AWS_ACCESS_KEY_ID.",
            ) from error


def _open_dataset(path: Path | str, **options: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, **options)


def _open_file(path: Path, **options: int) -> Any:
    if not path.exists():
        raise SceneError(f"There is no scene {path}", hint="Check the path.")
    if not path.is_file():
        raise SceneError(f"{path} is a folder, not a scene", hint="Give a raster file, such as a GeoTIFF.")
    try:
        return _open_dataset(path, **options)
    except GDAL_ERRORS as error:
        raise SceneError(
            f"{path} is not a raster that can be read ({error})",
            expected="a complete GeoTIFF, VRT, PNG, JPEG or other file that GDAL reads",
        ) from error


def _overview_sizes(dataset: Any) -> tuple[tuple[int, int], ...]:
    """Return the sizes of the overviews of a cloud optimized GeoTIFF, which GDAL knows to be unchanged; else none."""
    if dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") != "COG":
        return ()
    return tuple((-(-dataset.height // factor), -(-dataset.width // factor)) for factor in dataset.overviews(1))


def _require_readable(dataset: Any, path: Path | RasterAddress, drivers: Sequence[str] | None) -> None:
    if problem := _problem(dataset, drivers):
        raise SceneError(f"{path} {problem}")


def _problem(dataset: Any, drivers: Sequence[str] | None) -> str | None:
    """Return the reason why the pixels of a dataset cannot be read, as the rest of a sentence."""
    if drivers is not None and dataset.driver not in drivers:
        return f"is a {dataset.driver} file, where one of {', '.join(drivers)} is expected"
    if dataset.count == 0:
        names = dataset.subdatasets
        others = f"; it contains {len(names)} subdatasets: give one of them, such as {names[0]}" if names else ""
        return f"has no bands{others}"
    kinds = {np.dtype(_numpy_name(name)).kind if _numpy_name(name) in np.sctypeDict else "?" for name in dataset.dtypes}
    if not kinds <= set("uifc"):
        types = ", ".join(sorted(set(dataset.dtypes)))
        return f"has pixels of type {types}, where numbers are expected"
    if len(set(dataset.dtypes)) > 1:
        return f"has bands of several types ({', '.join(dataset.dtypes)}), where one is expected"
    return None


def _numpy_name(dtype: str) -> str:
    """Return numpy's name of a data type of rasterio; numpy has no complex integers."""
    return "complex64" if dtype == "complex_int16" else dtype


def _remarks_on_nodata(imagery: ImageryOptions, dtype: str, name: str) -> list[str]:
    value = imagery.nodata
    if value is None or typed_nodata(value, np.dtype(dtype)) is not None:
        return []
    return [f"The nodata value {value:g} cannot occur in {name}, which has pixels of type {dtype}."]


def _remarks_on_pages(dataset: Any, name: str) -> list[str]:
    if not (pages := dataset.subdatasets):
        return []
    problem = f"{name} contains {len(pages)} pages or subdatasets, of which the first is read."
    return [f"{problem} To read another, give its name, such as {pages[-1]}."]


def _band_with_dataset_mask(flags: Sequence[Sequence[MaskFlags]]) -> int | None:
    """Return a band with the mask of all bands, unless that is the alpha band, which is read itself."""
    found = (
        number
        for number, one in enumerate(flags, start=1)
        if MaskFlags.per_dataset in one and MaskFlags.alpha not in one
    )
    return next(found, None)


def _palette(dataset: Any) -> Palette | None:
    """Return the palette of a paletted raster, or the grays of one with inverted or fewer than 8 bits, or None."""
    if dataset.colorinterp[0] == ColorInterp.palette and dataset.dtypes[0] in {"uint8", "uint16"}:
        return Palette.of(dataset.colormap(1))
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    is_inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if dataset.count > 1 or dataset.dtypes[0] != "uint8" or not (bits < 8 or is_inverted):
        return None
    return Palette.of_gray(bits, is_inverted=is_inverted)

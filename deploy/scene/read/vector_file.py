"""Vector files: points, lines and polygons of any format that GDAL reads, and an account of what is left out."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyogrio
import pyogrio.raw
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from deploy.scene.read.geojson import require_lonlat
from deploy.scene.read.georeference import Georeference
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import UsageError

GeometryKind = Literal["Point", "LineString", "LinearRing", "Polygon"]
TYPE_IDS: dict[GeometryKind, int] = {"Point": 0, "LineString": 1, "LinearRing": 2, "Polygon": 3}
"""Type ids of shapely; larger ones have parts."""
NAME_FIELDS = ("name", "id")
"""Fields, in lower or upper case, that name a feature, in order of preference."""


class VectorFileRecord(Schema):
    """A vector file and what was used of it."""

    source: str
    """File name."""
    sha256: str
    """Digest of its geometries, their names and the coordinate system, as they were read."""
    features: int
    without_geometry: int
    """Features without a geometry, or with one that is empty or not finite."""
    other_geometry: int
    """Features of other geometry types only, such as points among polygons."""
    repaired: int = 0
    """Polygons that crossed themselves."""

    def remark(self) -> str | None:
        """Return what was left out or repaired, for the user; None if all features are used as they are."""
        parts = {
            "without a geometry, left out": self.without_geometry,
            "of another geometry type, left out": self.other_geometry,
            "repaired because they crossed themselves": self.repaired,
        }
        counted = ", ".join(f"{count} {words}" for words, count in parts.items() if count)
        return f"{self.source}, {self.features} features: {counted}." if counted else None


@dataclass(frozen=True, slots=True, eq=False)
class VectorFile:
    """Geometries without parts, in the coordinate system of their file."""

    record: VectorFileRecord
    geometries: Array
    """object [n]: shapely geometries in two dimensions."""
    names: tuple[str, ...]
    """Name of the feature that each geometry is from: its field `name`, else `id`, else its number in the file."""
    georeference: Georeference
    """The coordinate system, with map coordinates as pixels."""

    @property
    def is_geographic(self) -> bool:
        """Whether coordinates are degrees."""
        return bool(self.georeference.crs.is_geographic)


def read_vector_file(path: Path, *, kinds: Sequence[GeometryKind], what: str) -> VectorFile:
    """Read the geometries of some kinds; `what` names the file in messages, such as `file of points`.

    Raises:
        UsageError: The file is unreadable, or has several layers, no coordinate system, coordinates that do not fit it,
            or no geometry of these kinds.
    """
    try:
        crs_text, content, names = _read_layer(path, what)
        geometries = shapely.from_wkb(content, on_invalid="ignore")
    except (RuntimeError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        hint = "Use a format that GDAL reads, such as GeoJSON or GeoPackage."
        raise UsageError(f"The {what} {path} cannot be read ({error})", hint=hint) from error
    usable = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    coordinates, owner = shapely.get_coordinates(geometries, return_index=True)
    usable[owner[~np.isfinite(coordinates).all(axis=1)]] = False
    parts, owner = _parts(geometries[usable], np.flatnonzero(usable))
    wanted = np.isin(shapely.get_type_id(parts), [TYPE_IDS[kind] for kind in kinds]) & ~shapely.is_empty(parts)
    parts, owner = parts[wanted], owner[wanted]
    if not len(parts):
        got = f"{len(geometries)} features, {int(usable.sum())} of them with a geometry"
        raise UsageError(f"The {what} {path} has no {' or '.join(kinds)}", got=got)
    record = VectorFileRecord(
        source=path.name,
        sha256=_digest(crs_text, content, names),
        features=len(geometries),
        without_geometry=int((~usable).sum()),
        other_geometry=int(usable.sum()) - len(np.unique(owner)),
    )
    georeference = Georeference(_crs(crs_text, path, what), Affine.identity())
    if georeference.crs.is_geographic:
        require_lonlat(None, shapely.get_coordinates(parts), what=f"The {what} {path}", error=UsageError)
    return VectorFile(record, parts, tuple(names[one] for one in owner.tolist()), georeference)


def _read_layer(path: Path, what: str) -> tuple[str | None, Array, list[str]]:
    """Return coordinate system, WKB geometries and names of the features of the only layer with geometries."""
    layers = [name for name, kind in pyogrio.list_layers(path).tolist() if kind is not None]
    if len(layers) != 1:
        hint = "Extract one: ogr2ogr layer.gpkg FILE LAYER." if layers else "Use a file with geometries."
        got = f"the layers {', '.join(layers)}" if layers else "no layer with geometries"
        raise UsageError(f"The {what} {path} needs exactly one layer", got=got, hint=hint)
    fields = {str(field).lower(): str(field) for field in pyogrio.read_info(path, layer=layers[0])["fields"]}
    columns = [fields[name] for name in NAME_FIELDS if name in fields]
    meta, numbers, content, values = pyogrio.raw.read(
        path, layer=layers[0], columns=columns, force_2d=True, return_fids=True
    )
    named = dict(zip(map(str, meta["fields"]), values, strict=True))
    rows = zip(*(named[column] for column in columns), numbers, strict=True)
    return meta["crs"], content, [next(text for value in row if (text := _text(value))) for row in rows]


def _text(value: Any) -> str:
    """Return a value of a field as text; empty for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _crs(text: str | None, path: Path, what: str) -> CRS:
    hint = "Assign one: ogr2ogr -a_srs EPSG:4326 wgs84.gpkg FILE."
    if text is None:
        raise UsageError(f"The {what} {path} has no coordinate system", hint=hint)
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise UsageError(f"The coordinate system of the {what} {path} is unknown ({error})", hint=hint) from error
    if not (crs.is_geographic or crs.is_projected):
        raise UsageError(f"The coordinate system of the {what} {path} has no longitude and latitude", got=text[:80])
    return crs


def _parts(geometries: Array, owner: Array) -> tuple[Array, Array]:
    """Return the parts without parts of geometries, and the owner of each."""
    while (shapely.get_type_id(geometries) > max(TYPE_IDS.values())).any():
        geometries, index = shapely.get_parts(geometries, return_index=True)
        owner = owner[index]
    return geometries, owner


def _digest(crs: str | None, content: Array, names: list[str]) -> str:
    digest = hashlib.sha256(json.dumps([crs, names]).encode())
    for geometry in content:
        digest.update(geometry or b"\0")
    return digest.hexdigest()

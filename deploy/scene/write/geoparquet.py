"""Write the detections of a scene as GeoParquet, for tables of many scenes: geopandas, DuckDB, QGIS."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shapely

from deploy.scene.read.georeference import Georeference, map_polygons
from deploy.scene.result import SceneResult
from ifkd.core.errors import MissingExtraError
from ifkd.core.files import atomic_path

GEOMETRY = "geometry"


def require_pyarrow() -> Any:
    """Return the module pyarrow.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional package
        import pyarrow.parquet  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="geo", need="The format parquet") from error
    return pa


def write_geoparquet(chunks: Iterable[SceneResult], path: Path) -> None:
    """Write parts of a result as GeoParquet 1.1, boxes as WKB in the scene's coordinate system.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa = require_pyarrow()
    numbers = dict.fromkeys(("score", "length_m", "width_m", "heading_deg"), pa.float64())
    types = {"class_id": pa.int64(), **numbers, "time": pa.timestamp("ms", "UTC"), GEOMETRY: pa.binary()}
    writer = None
    with atomic_path(path) as temporary:
        try:
            for chunk in chunks:
                georeference, time = chunk.scene.georeference, chunk.scene.time
                assert georeference is not None
                columns = chunk.properties()
                columns["time"] = [None if time is None else time.utc] * len(chunk.detections)
                columns[GEOMETRY] = shapely.to_wkb(map_polygons(georeference, chunk.detections.outlines)).tolist()
                if writer is None:
                    tags = chunk.tags.items()
                    types |= {name: pa.from_numpy_dtype(one.dtype) for name, one in tags if one.dtype != object}
                    fields = [(name, types.get(name, pa.string())) for name in columns]
                    schema = pa.schema(fields, metadata={"geo": json.dumps(_metadata(georeference))})
                    writer = pa.parquet.ParquetWriter(temporary, schema, compression="zstd")
                writer.write_table(pa.table(columns, schema))
        finally:
            if writer is not None:
                writer.close()


def _metadata(georeference: Georeference) -> dict[str, Any]:
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": georeference.crs.to_dict(projjson=True),
        "orientation": "counterclockwise",
    }
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}

"""Map page: map.html shows a scene and its detections in one file, in any browser, without a network.

The filters and the selected object are in the fragment of the URL, so a view can be saved or sent.
"""

import base64
import html
import io
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploy.scene.result import SceneResult
from deploy.scene.write.file_names import MAP_FILE
from ifkd.core.detections import Array
from ifkd.core.files import write_text
from ifkd.core.html.colors import class_color, hex_color
from ifkd.core.oriented_boxes import corners

JPEG_QUALITY = 85


def write_page(result: SceneResult, overview: Array, folder: Path) -> list[str]:
    """Write map.html, with an overview as `Scene.overview` returns it, into `folder`, and return its name."""
    stream = io.BytesIO()
    Image.fromarray(overview).save(stream, format="JPEG", quality=JPEG_QUALITY)
    parts = {
        "title": html.escape(result.scene.name),
        "style": _template("map.css"),
        "script": _template("map.js"),
        "picture": base64.b64encode(stream.getvalue()).decode(),
        "scene": _script_json(page_data(result)),
    }
    page = _template("map.html")
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    write_text(folder / MAP_FILE, page)
    return [MAP_FILE]


def page_data(result: SceneResult) -> dict[str, Any]:
    """Return the page's data as JSON: detections as lists by property, best first; lengths in scene pixels."""
    height, width = result.scene.size
    georeference = result.scene.georeference
    found, sizes = result.detections, result.sizes_m()
    gsd_m = None if georeference is None else georeference.gsd_m(result.scene.size)
    return {
        "width": width,
        "height": height,
        "gsd_m": None if gsd_m is None else round(gsd_m, 6),
        "min_score": math.floor(result.settings.postprocess.score_threshold * 100) / 100,
        "columns": len(result.grid.lefts),
        "classes": [{"name": name, "color": hex_color(class_color(i))} for i, name in enumerate(result.classes)],
        "boxes": np.round(found.boxes.astype(np.float64), 1).tolist(),
        "corners": None if found.oriented is None else np.round(corners(found.oriented), 1).astype(np.float64).tolist(),
        "headings_deg": _headings_deg(result),
        "scores": np.round(found.scores.astype(np.float64), 4).tolist(),
        "labels": found.labels.tolist(),
        "sizes_m": None if sizes is None else [None if math.isnan(one[0]) else one for one in sizes.round(2).tolist()],
        "tiles": result.tiles.tolist(),
        "lonlat": _centers_lonlat(result),
        "unreadable": [
            [one.left, one.top, min(one.right, width), min(one.bottom, height)]
            for one in (tile.window for tile in result.unreadable)
        ],
        "skipped": _skipped(result),
        "facts": _facts(result, gsd_m),
    }


def _skipped(result: SceneResult) -> list[list[int]]:
    """Return the tiles that the screen skipped as boxes, neighbors of a row as one."""
    if result.screening is None:
        return []
    grid, (height, width) = result.grid, result.scene.size
    skipped = result.screening.selection.skipped.reshape(len(grid.tops), len(grid.lefts))
    boxes = []
    for top, row in zip(grid.tops, skipped, strict=True):
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).tolist()
        for first, stop in zip(edges[::2], edges[1::2], strict=True):
            right = grid.lefts[stop - 1] + grid.tile_px[1]
            boxes.append([grid.lefts[first], top, min(right, width), min(top + grid.tile_px[0], height)])
    return boxes


def _centers_lonlat(result: SceneResult) -> list[list[float] | None] | None:
    lonlat = result.centers_lonlat()
    if lonlat is None:
        return None
    return [[round(x, 6), round(y, 6)] if math.isfinite(x) and math.isfinite(y) else None for x, y in lonlat.tolist()]


def _headings_deg(result: SceneResult) -> list[float | None] | None:
    headings = result.headings_deg()
    return None if headings is None else [None if math.isnan(one) else one for one in headings.tolist()]


def _facts(result: SceneResult, gsd_m: float | None) -> list[list[str]]:
    """Return names and values of the section "About this scene"."""
    scene, grid, engine = result.scene, result.grid, result.engine
    skipped = 0 if result.screening is None else result.screening.record.skipped
    facts = {
        "Width × height": f"{scene.size[1]} × {scene.size[0]} px",
        "Acquired": str(scene.time) if scene.time is not None else None,
        "Coordinate system": scene.georeference.name if scene.georeference is not None else None,
        "Ground sample distance": f"{gsd_m:.3g} m" if gsd_m is not None else None,
        "Tiles": f"{len(grid)} of {grid.tile_px[1]} × {grid.tile_px[0]} px",
        "Without data": f"{result.empty} tiles" if result.empty else None,
        "Outside the area": f"{result.outside} tiles" if result.outside else None,
        "Skipped by the screen": f"{skipped} tiles, shaded" if skipped else None,
        "Unreadable": f"{len(result.unreadable)} tiles, crossed out" if result.unreadable else None,
        "Score threshold": f"{result.settings.postprocess.score_threshold:g}",
        "Engine": f"{engine.backend}, {engine.precision}",
        "Model SHA-256": f"{engine.sha256[:12]}…",
    }
    return [[name, value] for name, value in facts.items() if value is not None]


def _script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _template(name: str) -> str:
    return resources.files("deploy.scene.write").joinpath("templates", name).read_text(encoding="utf-8")

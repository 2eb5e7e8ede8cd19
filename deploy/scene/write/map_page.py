"""map.html: a scene and its objects in one file, to be looked at in any browser, without a network.

The page carries an overview picture and the objects as data. It filters by class and score and tells what is under the
pointer. What is filtered and chosen stands in the address after `#`, so a view can be kept or handed on.
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

from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from ifkd.core.detections import Array
from ifkd.core.files import write_text
from ifkd.core.html.colors import class_color, hex_color

PAGE_NAME = "map.html"
OVERVIEW_PX = 3072
JPEG_QUALITY = 85


def write_page(result: SceneResult, scene: Scene, folder: Path) -> list[str]:
    """Write map.html into `folder`, and return its name."""
    parts = {
        "title": html.escape(result.scene.name),
        "style": _template("map.css"),
        "script": _template("map.js"),
        "picture": _picture(scene),
        "scene": _as_script(page_data(result)),
    }
    page = _template("map.html")
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    write_text(folder / PAGE_NAME, page)
    return [PAGE_NAME]


def page_data(result: SceneResult) -> dict[str, Any]:
    """Return what the page shows, as JSON: objects in lists by property, best first; lengths in scene pixels."""
    height, width = result.scene.size
    georeference = result.scene.georeference
    found = result.detections
    gsd = None if georeference is None else georeference.gsd_m(result.scene.size)
    return {
        "width": width,
        "height": height,
        "gsd_m": None if gsd is None else round(gsd, 6),
        "least": math.floor(result.settings.selection.score_threshold * 100) / 100,
        "columns": len(result.grid.lefts),
        "classes": [
            {"name": name, "color": hex_color(class_color(label))} for label, name in enumerate(result.classes)
        ],
        "boxes": np.round(found.boxes.astype(np.float64), 1).tolist(),
        "scores": np.round(found.scores.astype(np.float64), 4).tolist(),
        "labels": found.labels.tolist(),
        "tiles": result.tiles.tolist(),
        "places": _places(result),
        "holes": [
            [hole.window.left, hole.window.top, min(hole.window.right, width), min(hole.window.bottom, height)]
            for hole in result.holes
        ],
        "facts": _facts(result, gsd),
    }


def _places(result: SceneResult) -> list[list[float] | None] | None:
    """Return longitude and latitude of the objects' centers, or None where the scene has none."""
    georeference = result.scene.georeference
    if georeference is None or georeference.lonlat_problem(result.scene.size) is not None:
        return None
    boxes = result.detections.boxes.astype(np.float64)
    lonlat = georeference.to_lonlat((boxes[:, :2] + boxes[:, 2:]) / 2.0)
    known: Array = np.asarray(np.isfinite(lonlat).all(axis=1))
    return [
        [round(longitude, 6), round(latitude, 6)] if there else None
        for (longitude, latitude), there in zip(lonlat.tolist(), known.tolist(), strict=True)
    ]


def _facts(result: SceneResult, gsd_m: float | None) -> list[list[str]]:
    scene = result.scene
    facts = [["Width × height", f"{scene.size[1]} × {scene.size[0]} px"]]
    if scene.georeference is not None:
        facts.append(["Coordinates", scene.georeference.name])
    if gsd_m is not None:
        facts.append(["Ground sample", f"{gsd_m:.3g} m"])
    facts.append(["Tiles", f"{len(result.grid)} of {result.grid.tile_px[1]} × {result.grid.tile_px[0]} px"])
    if result.skipped:
        facts.append(["Without data", f"{result.skipped} tiles"])
    if result.outside:
        facts.append(["Outside the area", f"{result.outside} tiles"])
    if result.holes:
        facts.append(["Not readable", f"{len(result.holes)} tiles, crossed out"])
    facts.append(["Least score", f"{result.settings.selection.score_threshold:g}"])
    facts.append(["Engine", f"{result.engine.backend}, {result.engine.precision}"])
    facts.append(["Model SHA-256", f"{result.engine.sha256[:12]}…"])
    return facts


def _picture(scene: Scene) -> str:
    stream = io.BytesIO()
    Image.fromarray(scene.overview(OVERVIEW_PX).pixels).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def _as_script(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _template(name: str) -> str:
    return resources.files("deploy.scene.write").joinpath("templates", name).read_text(encoding="utf-8")

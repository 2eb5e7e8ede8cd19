"""How a scene is searched: the bundle's settings, with the user's in their place."""

from typing import Any

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.aoi import AreaOfInterest
from export.bundle.manifest import Manifest
from ifkd.core.config import Schema
from ifkd.core.errors import BundleError, UsageError
from ifkd.core.input_shapes import STEP_PX, InputShapes
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid

TOUCH_ENGINE_PX = 2.0
"""A box this close to a tile's edge is taken to be cut by it, pixels of the engine's tiles."""
WHOLE = 1e-6
"""A number this close to a whole one is taken for it."""
ONE_CLASS_IOU = 0.8
"""Boxes of different classes that overlap more than this are one object on the map, of its likeliest class."""


class DetectionSettings(Schema):
    """Everything beside bundle and scene that the detections of a scene depend on."""

    scale: float
    """Factor from the scene's pixels to the engine's; a tile's side divided by it is whole."""
    overlap_px: int
    """Least overlap of neighboring tiles, pixels of the engine's tiles."""
    selection: PostprocessConfig
    """How detections are chosen within a tile."""
    merge: MergeSettings
    """How tiles are brought together; distances in scene pixels."""
    strict: bool = False
    """Stop at the first part of the scene that cannot be read."""
    area: AreaOfInterest | None = None
    """Where to look; everywhere by default."""
    tile_px: tuple[int, int] | None = None
    """Tile (height, width), pixels of the engine; by default its usual one."""


def settings_for(
    manifest: Manifest,
    *,
    score: float | None = None,
    overlap_px: int | None = None,
    gsd_m: float | None = None,
    merge: str = "border",
    metric: str = "iou",
    one_class: float = ONE_CLASS_IOU,
    strict: bool = False,
    area: AreaOfInterest | None = None,
    tile_px: int | None = None,
) -> DetectionSettings:
    """Return a bundle's settings with those given in their place.

    Args:
        manifest: The bundle's manifest.
        score: Least score of an object.
        overlap_px: Overlap of tiles, pixels of the engine's tiles.
        gsd_m: The scene's ground sample distance, meters, when it differs from that of the training images: the
            scene is scaled so that objects have the size they had there.
        merge: `border`, `nms`, `nmm` or `greedy_nmm`.
        metric: `iou` or `ios`.
        one_class: Of boxes of different classes with an IoU above this, the best stays; 1 keeps all.
        strict: Stop at the first part of the scene that cannot be read.
        area: Where to look; everywhere by default. `read_area` reads one from GeoJSON.
        tile_px: Height and width of the tiles, pixels of the engine, where the bundle takes several.

    Raises:
        UsageError: A setting does not fit.
        BundleError: The manifest's scale gives no whole window.
    """
    if score is not None and not 0.0 <= score < 1.0:
        raise UsageError("The score threshold must be at least 0 and below 1", got=score)
    if not 0.0 <= one_class <= 1.0:
        raise UsageError("one_class must be from 0 to 1", got=one_class)
    least = manifest.defaults.scene_score_threshold if score is None else score
    selection = manifest.defaults.postprocess.model_copy(update={"score_threshold": least})
    tile = manifest.input.tile_px if tile_px is None else (tile_px, tile_px)
    if not manifest.input.sizes.accepts(tile):
        raise UsageError(
            "The bundle's files do not take tiles of this size",
            got=f"{tile[0]} x {tile[1]} px",
            expected=str(manifest.input.sizes),
            hint="Leave --tile out, or export the checkpoint with tile_sides_px=[LEAST, LARGEST].",
        )
    scale = _scale(manifest, tile, gsd_m)
    return DetectionSettings(
        scale=scale,
        overlap_px=manifest.defaults.overlap_px if overlap_px is None else overlap_px,
        selection=selection,
        merge=MergeSettings(
            method=_one_of("merge", merge, ("border", "nms", "nmm", "greedy_nmm")),
            metric=_one_of("metric", metric, ("iou", "ios")),
            threshold=selection.iou_threshold,
            touch_px=TOUCH_ENGINE_PX / scale,
            one_class=one_class,
        ),
        strict=strict,
        area=area,
        tile_px=None if tile_px is None else tile,
    )


def tile_for(size: tuple[int, int], sizes: InputShapes, settings: DetectionSettings) -> tuple[int, int]:
    """Return the (height, width) of the tiles for a scene of `size`, pixels of the engine.

    Where an engine takes tiles of several sizes, a side that the scene does not fill is cut down to what it needs.
    """
    height, width = settings.tile_px or sizes.opt
    if sizes.side_range is None:
        return height, width
    return tuple(_enough(*pair, sizes.side_range[0], settings) for pair in zip(size, (height, width), strict=True))  # type: ignore[return-value]


def _enough(length: int, side: int, least: int, settings: DetectionSettings) -> int:
    """Return the smallest side that covers `length` pixels of a scene with whole pixels, at most `side`."""
    for shorter in range(least, side, STEP_PX):
        window = shorter / settings.scale
        if window >= length and abs(window - round(window)) <= WHOLE and shorter > settings.overlap_px:
            return shorter
    return side


def grid_for(size: tuple[int, int], tile_px: tuple[int, int], settings: DetectionSettings) -> TileGrid:
    """Return the tiles of a scene of `size` for engines with `tile_px`, in scene pixels.

    Raises:
        UsageError: The overlap does not fit the tile.
    """
    if not 0 <= settings.overlap_px < min(tile_px):
        raise UsageError(
            "The overlap must be at least 0 and smaller than the engine's tile",
            got=f"{settings.overlap_px} with tiles of {tile_px[0]}x{tile_px[1]}",
            hint="Lower --overlap-px.",
        )
    window = (round(tile_px[0] / settings.scale), round(tile_px[1] / settings.scale))
    return TileGrid(size, window, min(round(settings.overlap_px / settings.scale), min(window) - 1))


def _scale(manifest: Manifest, tile: tuple[int, int], gsd_m: float | None) -> float:
    height, width = tile
    scale = manifest.input.scale
    if gsd_m is None:
        sides = (height / scale, width / scale)
        if any(abs(side - round(side)) > WHOLE or round(side) < 1 for side in sides):
            raise BundleError(
                "The bundle's scale gives no whole window",
                got=f"tile {height}x{width} and scale {scale:g}",
                hint="Export it again with a scale that divides the tile.",
            )
        return scale
    trained = manifest.defaults.gsd_m
    if trained is None:
        raise UsageError(
            "The bundle does not say the ground sample distance it was trained at, so a scene's cannot be compared",
            got=f"gsd_m {gsd_m:g}",
            hint="Leave --gsd-m out.",
        )
    if not gsd_m > 0:
        raise UsageError("The ground sample distance must be above 0 meters", got=f"{gsd_m:g}")
    side = max(1, round(height / (scale * gsd_m / trained)))
    return height / side  # the nearest scale whose window is whole


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise UsageError(f"There is no {name} {value!r}", expected=f"one of {', '.join(known)}")
    return value

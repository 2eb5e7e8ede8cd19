"""`ifkd detect`: find the objects of a scene and write them as map files, tables and pictures."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifkd.errors import SceneError, VerdictError

if TYPE_CHECKING:
    from deploy.engine import Engine
    from deploy.scenes.result import SceneResult
    from deploy.scenes.scene import Scene
    from deploy.scenes.settings import DetectionSettings
    from deploy.scenes.truth import SceneTruth
    from deploy.scenes.workspace import Workspace
    from export.bundle import Bundle
    from export.manifest import Manifest


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("bundle", type=Path, help="folder made by `ifkd export`")
    parser.add_argument("scene", type=Path, help="GeoTIFF, VRT, PNG, JPEG or another raster")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--backend",
        choices=("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "torch", "tensorrt", "triton"),
        default="onnxruntime",
    )
    engine.add_argument(
        "--server", metavar="URL", help="of Triton, or of a model there (default: http://localhost:8000)"
    )
    engine.add_argument("--precision", choices=("fp32", "fp16", "int8", "int8-cpu"), default="fp32")
    engine.add_argument("--batch", type=int, metavar="N", help="tiles per call (default: the most the engine takes)")
    engine.add_argument("--threads", type=int, metavar="N", help="CPU threads of the engine (default: all cores)")
    reading = parser.add_argument_group("reading the scene")
    reading.add_argument(
        "--bands", type=int, nargs="+", metavar="B", help="one or three bands, from 1 (default: the bundle's)"
    )
    reading.add_argument(
        "--scale-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become black and white (default: as the bundle's network was trained)",
    )
    reading.add_argument("--nodata", type=float, metavar="V", help="the value that means no data (default: the file's)")
    reading.add_argument(
        "--gsd-m", type=float, metavar="M", help="the scene's ground sample distance, if not that of training"
    )
    reading.add_argument(
        "--aoi", type=Path, metavar="AREA.geojson", help="look only here: polygons in longitude and latitude"
    )
    reading.add_argument("--strict", action="store_true", help="stop at the first part that cannot be read")
    finding = parser.add_argument_group("finding objects")
    finding.add_argument("--score", type=float, metavar="S", help="least score of an object (default: the bundle's)")
    finding.add_argument(
        "--overlap-px", type=int, metavar="N", help="overlap of tiles, engine pixels (default: the bundle's)"
    )
    finding.add_argument(
        "--tile",
        type=int,
        metavar="PX",
        help="side of the tiles, engine pixels, for a bundle that takes several (default: the bundle's)",
    )
    finding.add_argument(
        "--merge",
        choices=("border", "nms", "nmm", "greedy_nmm"),
        default="border",
        help="how tiles are brought together (default: border)",
    )
    finding.add_argument("--metric", choices=("iou", "ios"), default="iou", help="overlap of boxes (default: iou)")
    finding.add_argument(
        "--one-class",
        type=float,
        default=0.8,
        metavar="IOU",
        help="of boxes of different classes that overlap more than this, keep the best (default: 0.8; 1 keeps all)",
    )
    writing = parser.add_argument_group("results")
    writing.add_argument(
        "--format",
        nargs="+",
        choices=("geojson", "gpkg", "coco", "csv"),
        metavar="F",
        help="of geojson, gpkg, coco, csv (default: all that the scene can have)",
    )
    writing.add_argument(
        "--restart", action="store_true", help="forget what an earlier run into this folder had done, and begin anew"
    )
    writing.add_argument(
        "--truth", type=Path, metavar="LABELS", help="labels of the scene (COCO or GeoJSON), to score the result"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Detect, write, and say what was found.

    Raises:
        VerdictError: Parts of the scene could not be read; everything else was written.
    """
    import rasterio

    from deploy.engines import open_engine
    from deploy.scenes.area import reach_of
    from deploy.scenes.outputs import RESULT_NAMES, choose_formats
    from deploy.scenes.scene import CACHE_BYTES, Scene
    from deploy.scenes.settings import grid_for, tile_for
    from deploy.scenes.truth import read_truth
    from deploy.scenes.workspace import Workspace
    from export.bundle import open_bundle

    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    settings = _settings(options, manifest)
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        Scene(
            options.scene,
            imagery=manifest.input.imagery,
            bands=None if options.bands is None else tuple(options.bands),
            scale_range=None if options.scale_range is None else tuple(options.scale_range),
            nodata=options.nodata,
        ) as scene,
    ):
        grid = grid_for(scene.size, tile_for(scene.size, manifest.input.sizes, settings), settings)
        reach_of(settings.area, scene.info, grid)
        formats, left_out = choose_formats(options.format, scene.info)
        truth = None
        if options.truth is not None:
            truth = read_truth(
                options.truth,
                scene=scene.info.name,
                size=scene.size,
                classes=manifest.classes,
                georeference=scene.info.georeference,
            )
        with Workspace(options.out, RESULT_NAMES, restart=options.restart) as workspace:
            if left_out:
                _say(left_out)
            with open_engine(
                bundle,
                backend=options.backend,
                precision=options.precision,
                threads=options.threads,
                server=options.server,
            ) as engine:
                try:
                    result = _detect(bundle, scene, engine, settings, options, workspace)
                except SceneError:  # going on would only come to the same place
                    workspace.discard()
                    raise
            record = _write(result, scene, options, formats, truth, workspace)
    return _concluded(result, record, options)


def _settings(options: argparse.Namespace, manifest: "Manifest") -> "DetectionSettings":
    from deploy.scenes.area import read_area
    from deploy.scenes.settings import settings_for

    return settings_for(
        manifest,
        score=options.score,
        overlap_px=options.overlap_px,
        gsd_m=options.gsd_m,
        merge=options.merge,
        metric=options.metric,
        one_class=options.one_class,
        strict=options.strict,
        area=None if options.aoi is None else read_area(options.aoi),
        tile_px=options.tile,
    )


def _detect(
    bundle: "Bundle",
    scene: "Scene",
    engine: "Engine",
    settings: "DetectionSettings",
    options: argparse.Namespace,
    workspace: "Workspace",
) -> "SceneResult":
    """Detect, going on from the rows that an earlier run into the same folder had finished."""
    from deploy.scenes.journal import Journal
    from deploy.scenes.pipeline import batch_size, detect_scene
    from deploy.scenes.run_record import run_identity

    batch = batch_size(options.batch, engine.info.max_batch)
    identity = run_identity(options.bundle, scene, engine.info, settings, batch)
    with Journal(workspace.journal_path, identity) as journal:
        if len(journal):
            rows = "1 row" if len(journal) == 1 else f"{len(journal)} rows"
            _say(f"An earlier run had finished {rows} of tiles; going on from there.")
        return detect_scene(
            engine,
            scene,
            settings,
            category_ids=bundle.manifest.category_ids,
            batch=batch,
            show_progress=True,
            journal=journal,
        )


def _write(
    result: "SceneResult",
    scene: "Scene",
    options: argparse.Namespace,
    formats: tuple[str, ...],
    truth: "SceneTruth | None",
    workspace: "Workspace",
) -> dict[str, Any]:
    """Write everything, and return what run.json holds."""
    import time

    from deploy.scenes.map_page import write_page
    from deploy.scenes.outputs import write_results
    from deploy.scenes.quicklook import write_quicklooks
    from deploy.scenes.run_record import run_record
    from deploy.scenes.workspace import RUN_NAME
    from ifkd.files import write_json

    start = time.perf_counter()
    settings = result.settings
    folder = workspace.make_stage()
    files = write_results(result, folder, formats, image_id=truth.image_id if truth else 1)
    files += write_quicklooks(result, scene, folder)
    files += write_page(result, scene, folder)
    record = run_record(
        result,
        bundle=options.bundle,
        files=files,
        score=None
        if truth is None
        else truth.score(result.detections, score_threshold=settings.selection.score_threshold),
        write_seconds=time.perf_counter() - start,
    )
    write_json(folder / RUN_NAME, record)
    workspace.commit()
    return record


def _concluded(result: "SceneResult", record: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Print the summary, and raise the verdict when there are holes."""
    if not options.json:
        print(_summary(result, record, options.out))  # noqa: T201
    if result.holes:
        if options.json:  # the verdict ends the verb, so its result is printed here
            print(json.dumps(record, indent=2, ensure_ascii=False))  # noqa: T201
        first = result.holes[0]
        raise VerdictError(
            f"{len(result.holes)} of {len(result.grid)} tiles of {result.scene.name} could not be read; the rest was "
            f"searched and written. The first is {first.tile}: {first.problem}",
        )
    return record


def _summary(result: "SceneResult", record: dict[str, Any], out: Path) -> str:
    height, width = result.scene.size
    seconds = result.seconds
    looked = len(result.grid) - result.skipped - result.outside - len(result.holes)
    outside = f", {result.outside} outside the area" if result.outside else ""
    head = (
        f"{len(result.detections)} objects in {result.scene.name} ({width} x {height} px, {looked} tiles looked at, "
        f"{result.skipped} empty{outside}) in {seconds['total']:.1f} s, "
        f"of which inference {seconds.get('infer', 0.0):.1f} s"
    )
    lines = [head]
    lines += [f"  {name}: {count}" for name, count in result.counts().items() if count]
    score = record["score"]
    if score is not None:
        shown = [
            f"{name} {score[key]:.3f}"
            for name, key in (
                ("mAP", "mean_ap"),
                ("AP50", "ap50"),
                ("precision", "precision"),
                ("recall", "recall"),
                ("F1", "f1"),
            )
            if score[key] is not None
        ]
        lines.append(
            f"Against {score['objects']} labelled objects, at score {score['score_threshold']:g} and IoU 0.5: "
            + (", ".join(shown) or "nothing to compare")
        )
    lines.append(f"Results: {out} ({', '.join(record['files'])})")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"ifkd: {line}", file=sys.stderr)  # noqa: T201

"""`ifkd detect`: detect the objects of scenes, and write them as map files, tables and pictures."""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy import cli
from deploy.cli.evaluate import BACKENDS, PRECISIONS
from ifkd.core.errors import UsageError, VerdictError

if TYPE_CHECKING:
    from deploy.cluster.summary import Summary
    from deploy.engines.engine import Backend
    from deploy.scene.detect_plan import DetectPlan
    from deploy.scene.filters import SceneFilters
    from deploy.scene.read.scene_list import SceneSource
    from deploy.scene.scene_run import SceneRun
    from deploy.scene.settings import DetectionSettings
    from export.bundle.manifest import Manifest, Precision


class Arguments(cli.Arguments):
    """Arguments of `ifkd detect`."""

    bundle: Path
    scenes: list[str]
    out: str
    backend: "Backend | None"
    server: str | None
    precision: "Precision | None"
    batch: int | None
    threads: int | None
    cluster: Literal["ray"] | None
    cores_per_actor: int
    bands: list[int] | None
    scale_range: list[float] | None
    nodata: float | None
    alpha: int | Literal["none"] | None
    gsd_m: float | None
    aoi: Path | None
    asset: str | None
    time: str | None
    strict: bool
    score_threshold: float | None
    overlap_px: int | None
    tile: int | None
    merge: str
    metric: str
    class_agnostic_iou: float | None
    screen: Literal["off", "auto"] | float
    audit: float
    exclude: list[Path]
    tag: bool
    near: Path | None
    within: float | None
    coast: Path | None
    format: list[str] | None
    crops: int
    no_resume: bool
    work_dir: Path | None
    ground_truth: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `ifkd export`")
    parser.add_argument(
        "scenes",
        nargs="+",
        metavar="SCENE",
        help="GeoTIFF, VRT, PNG, JPEG or another raster: a path, a glob or a URL (s3://, https://); a text list "
        "(@FILE or FILE.txt); a STAC item or item collection (FILE.json)",
    )
    out_help = "folder for the results, with a subfolder per scene if there are several; or a URL of fsspec"
    parser.add_argument("--out", required=True, metavar="DIR", help=out_help)
    _configure_engine(parser.add_argument_group("engine").add_argument)
    _configure_input(parser.add_argument_group("input").add_argument)
    _configure_detection(parser.add_argument_group("detection").add_argument)
    _configure_filters(parser.add_argument_group("filters by files of GDAL's vector formats").add_argument)
    _configure_output(parser.add_argument_group("output").add_argument)


def _configure_engine(add: Callable[..., object]) -> None:
    best = "the best that starts: tensorrt, onnxruntime-cuda, openvino for Faster R-CNN, onnxruntime (on clusters)"
    add("--backend", choices=BACKENDS, help=f"runtime (default: {best})")
    add(
        "--server",
        metavar="URL",
        help="Triton server, or a model on it, for the backend triton (default: http://localhost:8000)",
    )
    precision_help = "precision of the bundle's file (default: the fastest that the export recommends for the runtime)"
    add("--precision", choices=PRECISIONS, help=precision_help)
    batch_help = "tiles per inference (default: the engine's maximum)"
    add("--batch", type=cli.positive_int, metavar="N", help=batch_help)
    threads_help = "CPU threads of the engine (default: all cores; with --cluster, --cores-per-actor)"
    add("--threads", type=cli.positive_int, metavar="N", help=threads_help)
    add(
        "--cluster",
        choices=("ray",),
        help="distribute scenes and parts of scenes to one engine per GPU, or per --cores-per-actor CPU cores, of the "
        "Ray cluster in RAY_ADDRESS, or of this machine",
    )
    cores_help = "CPU cores of each engine with --cluster (default: 1)"
    add("--cores-per-actor", type=cli.positive_int, default=1, metavar="N", help=cores_help)


def _configure_input(add: Callable[..., object]) -> None:
    add("--bands", type=int, nargs="+", metavar="B", help="one or three bands, from 1 (default: the bundle's)")
    range_help = "values that become black and white (default: as for the bundle's training images)"
    add("--scale-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=range_help)
    add("--nodata", type=float, metavar="V", help="value of pixels without data, for scenes that do not state it")
    add("--alpha", type=cli.alpha_band, metavar="B", help=cli.ALPHA_HELP)
    gsd_help = "ground sample distance of the scene in meters, if it differs from that of the training images"
    add("--gsd-m", type=float, metavar="M", help=gsd_help)
    aoi_help = "area of interest: polygons in longitude and latitude; other parts are not processed"
    add("--aoi", type=Path, metavar="AREA.geojson", help=aoi_help)
    add("--asset", metavar="KEY", help="asset of STAC items (default: their only image)")
    time_help = "acquisition time of the scene (RFC 3339; default: that of its STAC item or its tags)"
    add("--time", metavar="TIME", help=time_help)
    strict_help = "stop at the first unreadable part of a scene, and fail if the audit contradicts the screen's bound"
    add("--strict", action="store_true", help=strict_help)


def _configure_detection(add: Callable[..., object]) -> None:
    add("--score-threshold", type=float, metavar="S", help="minimum score of a detection (default: the bundle's)")
    overlap_help = "minimum overlap of adjacent tiles, engine pixels (default: the bundle's)"
    add("--overlap-px", type=int, metavar="N", help=overlap_help)
    tile_help = "side of the tiles, engine pixels, for a bundle that accepts several (default: the bundle's)"
    add("--tile", type=cli.positive_int, metavar="PX", help=tile_help)
    merge_help = "method that merges the detections of overlapping tiles (default: border)"
    add("--merge", choices=("border", "nms", "nmm", "greedy_nmm"), default="border", help=merge_help)
    add("--metric", choices=("iou", "ios"), default="iou", help="overlap of two boxes for merging (default: iou)")
    agnostic_help = "of boxes of different classes with a higher IoU, keep the best (default: the bundle's; 1: all)"
    add("--class-agnostic-iou", type=float, metavar="IOU", help=agnostic_help)
    screen_help = (
        "skip tiles by the screen of the bundle: `auto` at its calibrated threshold, where that pays, or a threshold "
        "from 0 to 1 (default: off)"
    )
    add("--screen", type=_screen_choice, default="off", metavar="S", help=screen_help)
    audit_help = "fraction of the skipped tiles that are searched to estimate the loss (default: 0.02)"
    add("--audit", type=float, default=0.02, metavar="F", help=audit_help)


def _screen_choice(text: str) -> float | str:
    """Return `off`, `auto` or a threshold."""
    if text in {"off", "auto"}:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be off, auto or a number from 0 to 1, got {text}") from error


def _configure_filters(add: Callable[..., object]) -> None:
    exclude_help = "polygons, such as land: detections with their center inside are dropped"
    add("--exclude", type=Path, nargs="+", default=[], metavar="AREAS", help=exclude_help)
    tag_help = "keep the detections inside these polygons, with the property `excluded`"
    add("--tag", action="store_true", help=tag_help)
    near_help = "points, such as platforms: detections near them get the properties `near` and `near_m`"
    add("--near", type=Path, metavar="POINTS", help=near_help)
    add("--within", type=float, metavar="M", help="distance in meters that is near to these points")
    coast_help = "lines or polygons: the distance in meters to them is the property `coast_m`"
    add("--coast", type=Path, metavar="LINES", help=coast_help)


def _configure_output(add: Callable[..., object]) -> None:
    format_help = "output formats: geojson, gpkg, coco, csv, parquet (default: the first four that the scene supports)"
    add("--format", nargs="+", choices=("geojson", "gpkg", "coco", "csv", "parquet"), metavar="F", help=format_help)
    crops_help = "write pictures of the N best detections of each scene (default: none)"
    add("--crops", type=cli.positive_int, default=0, metavar="N", help=crops_help)
    add("--no-resume", action="store_true", help="start again instead of resuming an interrupted run into this folder")
    work_help = "local folder for the results before they are copied to a URL (default: ifkd-work)"
    add("--work-dir", type=Path, metavar="DIR", help=work_help)
    truth_help = "labels of the scene (COCO or GeoJSON) to evaluate the detections with"
    add("--ground-truth", type=Path, metavar="LABELS", help=truth_help)


def run(arguments: Arguments) -> dict[str, Any]:
    """Detect, write the results, and print a summary.

    Raises:
        VerdictError: Scenes failed, or parts of a scene are unreadable; all other results are written.
    """
    from deploy.scene.read.scene import gdal_environment

    plan = _resolve(arguments)
    with gdal_environment():
        return _run_single(plan, arguments) if plan.single else _run_batch(plan, arguments)


def _resolve(arguments: Arguments) -> "DetectPlan":
    """Resolve the arguments, the bundle and its settings into a plan."""
    from deploy.cluster.ray_cluster import require_ray
    from deploy.cluster.summary_page import require_templates
    from deploy.engines import EngineOptions
    from deploy.scene.detect_plan import DetectPlan
    from deploy.scene.read.scene_list import is_single, read_sources
    from deploy.scene.settings import SceneRequest
    from deploy.scene.write.geoparquet import require_pyarrow
    from deploy.scene.write.result_store import open_store
    from export.bundle.bundle import open_bundle

    if arguments.cluster:
        require_ray()
    if "parquet" in (arguments.format or ()):
        require_pyarrow()
    scenes = _with_time(read_sources(arguments.scenes, asset=arguments.asset), arguments.time)
    single = is_single(arguments.scenes)
    bundle = open_bundle(arguments.bundle)
    settings = _settings(arguments, bundle.manifest)
    if not single and arguments.ground_truth is not None:
        problem = "--ground-truth has the labels of one scene, named by its path or URL"
        got, hint = f"{len(scenes)} scenes", "Evaluate each with `ifkd evaluate RESULTS --scene LABELS`."
        if len(scenes) == 1:
            got, hint = " ".join(arguments.scenes), f"Name {scenes[0].location} itself."
        raise UsageError(problem, got=got, hint=hint)
    if not single:
        require_templates()
    low_high = arguments.scale_range
    return DetectPlan(
        scenes=scenes,
        request=SceneRequest(
            bundle,
            settings,
            bands=None if arguments.bands is None else tuple(arguments.bands),
            scale_range=None if low_high is None else (low_high[0], low_high[1]),
            nodata=arguments.nodata,
            alpha=arguments.alpha,
            batch=arguments.batch,
            formats=arguments.format,
            crops=arguments.crops,
            resume=not arguments.no_resume,
            filters=_filters(arguments),
            ground_truth=arguments.ground_truth,
        ),
        engine=EngineOptions(arguments.backend, arguments.precision, arguments.threads, arguments.server),
        store=open_store(arguments.out, work=arguments.work_dir),
        single=single,
        cluster=arguments.cluster,
        cores_per_actor=arguments.cores_per_actor,
    )


def _settings(arguments: Arguments, manifest: "Manifest") -> "DetectionSettings":
    """Return the settings of a bundle with those of the arguments."""
    from deploy.scene.read.aoi import read_aoi
    from deploy.scene.settings import settings_for

    settings = settings_for(
        manifest,
        score_threshold=arguments.score_threshold,
        overlap_px=arguments.overlap_px,
        gsd_m=arguments.gsd_m,
        merge=arguments.merge,
        metric=arguments.metric,
        class_agnostic_iou=arguments.class_agnostic_iou,
        strict=arguments.strict,
        aoi=None if arguments.aoi is None else read_aoi(arguments.aoi),
        tile_px=arguments.tile,
        screen=arguments.screen,
        audit=arguments.audit,
    )
    if arguments.screen == "auto" and settings.screen is None:
        _log("The bundle has no screen with a calibrated threshold: all tiles are searched.")
    return settings


def _filters(arguments: Arguments) -> "SceneFilters | None":
    """Read the filters, and report what is left out of their files."""
    from deploy.scene.filters import read_filters

    filters = read_filters(
        exclude=arguments.exclude,
        tag=arguments.tag,
        near=arguments.near,
        within_m=arguments.within,
        coast=arguments.coast,
    )
    for remark in filters.remarks() if filters is not None else ():
        _log(remark)
    return filters


def _with_time(scenes: "tuple[SceneSource, ...]", time: str | None) -> "tuple[SceneSource, ...]":
    """Return the scenes, the only one with the time that the user states."""
    from deploy.scene.read.acquisition_time import stated_time

    if time is None:
        return scenes
    if len(scenes) > 1:
        hint = "State the time of each scene in a STAC item beside it (SCENE.stac.json)."
        raise UsageError("--time is the time of one scene", got=f"{len(scenes)} scenes", hint=hint)
    return (replace(scenes[0], time=stated_time(time)),)


def _run_single(plan: "DetectPlan", arguments: Arguments) -> dict[str, Any]:
    """Process one scene, whose results are written into the output folder itself."""
    from deploy.cluster.engine_startup import open_engine_pool
    from deploy.scene.scene_run import run_scene

    plan.store.require_access()
    with ExitStack() as stack:
        run = run_scene(
            plan.request,
            plan.scenes[0],
            plan.store.work,
            executor=lambda: stack.enter_context(open_engine_pool(plan, _log)).executor,
            log=_log,
        )
    plan.store.publish()
    if not arguments.json:
        print(_scene_summary(run, str(plan.store)))  # noqa: T201
    record = run.record.model_dump(mode="json")
    result, unreadable = run.result, run.result.unreadable
    if unreadable:
        problem = (
            f"{len(unreadable)} of {len(result.grid)} tiles of {result.scene.name} could not be read; the results of "
            f"the others are written. The first is {unreadable[0].tile}: {unreadable[0].problem}"
        )
        raise VerdictError(problem, result=record)
    contradiction = run.record.screening.contradiction if run.record.screening is not None else None
    if contradiction is not None:
        if arguments.strict:
            raise VerdictError(contradiction, result=record)
        _log(contradiction)
    return record


def _run_batch(plan: "DetectPlan", arguments: Arguments) -> dict[str, Any]:
    """Process several scenes, each with a folder for its results, and write a summary."""
    from deploy.cluster.batch_run import BatchRun

    summary = BatchRun(plan, _log).run()
    record = summary.model_dump(mode="json")
    if not arguments.json:
        print(_batch_summary(summary, str(plan.store)))  # noqa: T201
    if summary.verdict:
        problem = f"{summary.verdict}. All other results are written; see {plan.store}/summary.html"
        raise VerdictError(problem, result=record)
    return record


def _batch_summary(summary: "Summary", out: str) -> str:
    retried = f", {summary.retried_row_ranges} row ranges retried" if summary.retried_row_ranges else ""
    head = (
        f"{summary.objects} objects in {summary.done} of {summary.scenes} scenes in {summary.seconds:.1f} s: "
        f"{summary.km2:.1f} km2, {summary.km2_per_hour:.0f} km2 per hour, {summary.megapixels_per_second:.1f} million "
        f"pixels per second{retried}"
    )
    lines = [head, *(f"  {name}: {count}" for name, count in summary.objects_per_class.items() if count)]
    lines.append(f"Results: {out} (a folder per scene, summary.json, summary.html)")
    return "\n".join(lines)


def _scene_summary(run: "SceneRun", out: str) -> str:
    result, score, seconds = run.result, run.record.score, run.result.seconds
    height, width = result.scene.size
    outside = f", {result.outside} outside the area" if result.outside else ""
    head = (
        f"{len(result.detections)} objects in {result.scene.name} ({width} x {height} px, {result.processed} tiles "
        f"processed, {result.empty} empty{outside}) in {seconds['total']:.1f} s, "
        f"of which inference {seconds.get('infer', 0.0):.1f} s"
    )
    lines = [head, *(f"  {name}: {count}" for name, count in result.counts().items() if count)]
    if score is not None:
        metrics = {"mAP": score.mean_ap, "AP50": score.ap50}
        metrics |= {"precision": score.precision, "recall": score.recall, "F1": score.f1}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if value is not None)
        condition = f"{score.objects} labeled objects, at score {score.score_threshold:g} and IoU 0.5"
        lines.append(f"Against {condition}: {shown or 'nothing to compare'}")
    if result.screening is not None:
        lines.append(result.screening.record.summary())
    if result.filters is not None:
        lines.append(result.filters.summary())
    lines.append(f"Results: {out} ({', '.join(run.record.files)})")
    return "\n".join(lines)


def _log(message: str) -> None:
    print(f"ifkd: {message}", file=sys.stderr)  # noqa: T201

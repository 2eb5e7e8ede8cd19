"""`ifkd detect`: find the objects of scenes and write them as map files, tables and pictures."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifkd.core.errors import UsageError, VerdictError

if TYPE_CHECKING:
    from deploy.cluster.batch_run import EnginePool
    from deploy.cluster.scene_list import SceneSource
    from deploy.cluster.summary import Summary
    from deploy.scene.result import SceneResult
    from deploy.scene.scene_run import SceneRequest
    from deploy.scene.settings import DetectionSettings
    from export.bundle.bundle import Bundle
    from export.bundle.manifest import Manifest


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("bundle", type=Path, help="folder made by `ifkd export`")
    parser.add_argument(
        "scenes",
        nargs="+",
        metavar="SCENE",
        help="GeoTIFF, VRT, PNG, JPEG or another raster: a path, a glob or an address (s3://, https://); a text list "
        "(@FILE or FILE.txt); a STAC item or item collection (FILE.json)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the results, one inside it for each scene where there are several; or an address of fsspec",
    )
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
    engine.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of the engine (default: all cores; with --cluster, those of --cores-per-actor)",
    )
    engine.add_argument(
        "--cluster",
        choices=("ray",),
        help="share scenes and parts of scenes out to an engine on every GPU, or on every --cores-per-actor cores, of "
        "this machine or of the cluster that RAY_ADDRESS names",
    )
    engine.add_argument(
        "--cores-per-actor", type=_core_count, default=1, metavar="N", help="with --cluster (default: 1)"
    )
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
    reading.add_argument("--asset", metavar="KEY", help="which asset of STAC items (default: their only image)")
    reading.add_argument("--strict", action="store_true", help="stop at the first part that cannot be read")
    finding = parser.add_argument_group("finding objects")
    finding.add_argument(
        "--score-threshold", type=float, metavar="S", help="least score of an object (default: the bundle's)"
    )
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
        "--class-agnostic-iou",
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
        "--no-resume", action="store_true", help="forget what an earlier run into this folder had done, and begin anew"
    )
    writing.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="where results are made before they go to an address (default: ifkd-work, here)",
    )
    writing.add_argument(
        "--ground-truth", type=Path, metavar="LABELS", help="labels of the scene (COCO or GeoJSON), to score the result"
    )


def _core_count(text: str) -> int:
    """Return a number of cores, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of cores, such as 2")
    return int(text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Detect, write, and say what was found.

    Raises:
        VerdictError: Scenes, or parts of one, could not be searched; everything else was written.
    """
    import rasterio

    from deploy.cluster.ray_cluster import require_ray
    from deploy.cluster.scene_list import is_single, read_sources
    from deploy.scene.read.scene import CACHE_BYTES
    from deploy.scene.scene_run import SceneRequest
    from export.bundle.bundle import open_bundle
    from ifkd.imagery.address import HTTP_OPTIONS

    if options.cluster:
        require_ray()
    sources = read_sources(options.scenes, asset=options.asset)
    bundle = open_bundle(options.bundle)
    request = SceneRequest(
        bundle,
        _settings(options, bundle.manifest),
        bands=None if options.bands is None else tuple(options.bands),
        scale_range=None if options.scale_range is None else tuple(options.scale_range),
        nodata=options.nodata,
        formats=options.format,
        batch=options.batch,
        restart=options.no_resume,
        truth=options.ground_truth,
    )
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **HTTP_OPTIONS):
        if is_single(options.scenes):
            return _one(options, request, sources[0])
        return _many(options, request, sources)


def _one(options: argparse.Namespace, request: "SceneRequest", source: "SceneSource") -> dict[str, Any]:
    """Look at one scene, whose results lie in the folder itself."""
    from deploy.cluster.result_store import open_store
    from deploy.scene.scene_run import run_scene

    store = open_store(options.out, work=options.work_dir)
    store.require_access()
    with ExitStack() as held:
        run = run_scene(
            request,
            source.place,
            store.work,
            searcher=lambda: held.enter_context(_engines(options, request.bundle)).searcher,
            say=_say,
        )
    store.publish()
    return _concluded(run.result, run.record, options)


def _many(options: argparse.Namespace, request: "SceneRequest", sources: "Sequence[SceneSource]") -> dict[str, Any]:
    """Look at scenes, each into a folder of its own, and sum up."""
    from deploy.cluster.batch_run import BatchRun
    from deploy.cluster.result_store import open_store
    from deploy.cluster.summary_page import require_templates

    if request.truth is not None:
        raise UsageError(
            "--ground-truth has the labels of one scene",
            got=f"{len(sources)} scenes",
            hint="Score each with `ifkd evaluate RESULTS --scene LABELS`.",
        )
    require_templates()
    store = open_store(options.out, work=options.work_dir)
    facts = {"backend": options.backend, "precision": options.precision, "threads": options.threads}
    campaign = BatchRun(request, sources, store, engine_facts=facts, say=_say)
    summary = campaign.run(lambda: _engines(options, request.bundle))
    record = summary.model_dump(mode="json")
    if not options.json:
        print(_campaign_summary(summary, str(store)))  # noqa: T201
    if summary.verdict:
        raise VerdictError(
            f"{summary.verdict}. The rest was searched and written; see {store}/summary.html", result=record
        )
    return record


@contextmanager
def _engines(options: argparse.Namespace, bundle: "Bundle") -> "Iterator[EnginePool]":
    """Open who looks at the scenes."""
    from functools import partial

    from deploy.cluster.batch_run import EnginePool
    from deploy.engines import ON_GPU, open_engine
    from deploy.scene.run.executor import LocalExecutor

    opens = partial(
        open_engine,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads or (options.cores_per_actor if options.cluster else None),
        server=options.server,
    )
    if options.cluster:
        from deploy.cluster.ray_pool import ray_engines

        cores = options.cores_per_actor
        with ray_engines(bundle, opens, on_gpu=options.backend in ON_GPU, cores_per_engine=cores, say=_say) as engines:
            yield engines
        return
    with opens(bundle) as engine:
        facts = {"scale_out": None, "backend": engine.info.backend, "device": engine.info.device, "engines": 1}
        yield EnginePool(LocalExecutor(engine), facts, scenes_at_once=1)


def _settings(options: argparse.Namespace, manifest: "Manifest") -> "DetectionSettings":
    from deploy.scene.read.aoi import read_aoi
    from deploy.scene.settings import settings_for

    return settings_for(
        manifest,
        score=options.score_threshold,
        overlap_px=options.overlap_px,
        gsd_m=options.gsd_m,
        merge=options.merge,
        metric=options.metric,
        one_class=options.class_agnostic_iou,
        strict=options.strict,
        area=None if options.aoi is None else read_aoi(options.aoi),
        tile_px=options.tile,
    )


def _concluded(result: "SceneResult", record: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Print the summary, and raise the verdict when there are holes."""
    if not options.json:
        print(_summary(result, record, options.out))  # noqa: T201
    if result.holes:
        first = result.holes[0]
        raise VerdictError(
            f"{len(result.holes)} of {len(result.grid)} tiles of {result.scene.name} could not be read; the rest was "
            f"searched and written. The first is {first.tile}: {first.problem}",
            result=record,
        )
    return record


def _campaign_summary(summary: "Summary", out: str) -> str:
    again = f", {summary.retries} bands looked at again" if summary.retries else ""
    head = (
        f"{summary.objects} objects in {summary.done} of {summary.scenes} scenes in {summary.seconds:.1f} s: "
        f"{summary.km2:.1f} km2, {summary.km2_per_hour:.0f} km2 an hour, {summary.megapixels_per_second:.1f} million "
        f"pixels a second{again}"
    )
    lines = [head, *(f"  {name}: {count}" for name, count in summary.objects_per_class.items() if count)]
    lines.append(f"Results: {out} (a folder for each scene, summary.json, summary.html)")
    return "\n".join(lines)


def _summary(result: "SceneResult", record: dict[str, Any], out: str) -> str:
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
            f"Against {score['objects']} labeled objects, at score {score['score_threshold']:g} and IoU 0.5: "
            + (", ".join(shown) or "nothing to compare")
        )
    lines.append(f"Results: {out} ({', '.join(record['files'])})")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"ifkd: {line}", file=sys.stderr)  # noqa: T201

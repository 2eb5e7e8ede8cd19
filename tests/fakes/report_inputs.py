"""Synthetic results for reports, built by the production code where that is fast."""

import numpy as np
from PIL import Image, ImageDraw

from deploy.accuracy.evaluated_model import EvaluatedModel, EvaluatedModelRecord
from deploy.accuracy.evaluation import evaluate_model, open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.accuracy.provenance import BundleRecord, DataRecord, EngineRecord
from deploy.bench.bench_result import Bench, BenchCell, TileSource, UnmeasuredFile, compute_speedups
from deploy.bench.latency import GroundCoverage, TimingConfig, summarize
from deploy.bench.process_cost import ProcessCost
from deploy.bench.stage_timing import StageProfile, StageTime
from deploy.bench.system_monitor import SystemRecord
from deploy.parity.parity import ParityReference
from deploy.parity.parity_result import Parity, overall_verdict
from deploy.parity.tolerances import ToleranceTable
from deploy.report.report import assemble
from deploy.report.reported_scene import read_scene_run
from deploy.scene.merge.merge import MergeSettings
from deploy.scene.operational_figures import DetectionRates, OperationalFigures, RatesAtScore
from deploy.scene.scene_score import SceneScore
from deploy.scene.settings import DetectionSettings
from deploy.scene.write.run_record import BundleReference, RunRecord, SceneRecord, TilesRecord
from fakes import drifting_engine as fake
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.timing import TimingSamples
from ifkd.imagery.contrast import ContrastStretch

TILING = TilingConfig(scale=1.0, tile_px=(fake.TILE, fake.TILE), overlap_px=24, postprocess=PostprocessConfig())
BUNDLE = BundleRecord(
    name="harbor-student",
    path="runs/harbor/bundle",
    manifest_sha256="b" * 64,
    created="2026-11-20T10:00:00Z",
    producer="ifkd 0.1.0",
    provenance={"role": "student", "method": "ifkd", "notes": ["The encoder of EDE had random weights."]},
)
ENVIRONMENT = {
    "machine": {"cpu": "Example CPU @ 2.4 GHz", "cores": 2, "memory_gb": 8.0},
    "versions": {"python": "3.11.9", "numpy": "2.3.1", "torch": None},
    "affinity": [0, 1],
    "gpus": [],
    "load": {"1min": 0.2},
}


def noisy_finder(keep, noise):
    random = np.random.default_rng(11)

    def find(tile):
        found = fake.find_squares(tile)
        found.boxes[:] += random.normal(0, noise, found.boxes.shape)
        return found.select(random.random(len(found)) < keep)

    return find


def dataset(folder):
    path = fake.write_dataset(folder / "data", images=12)
    return open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="report")


def evaluation(data, name, *, role, method, backbone, parameters, keep, noise):
    record = EvaluatedModelRecord(
        kind="checkpoint",
        name=name,
        path=f"runs/harbor/{name}/best.safetensors",
        sha256=(name[0].encode().hex() * 64)[:64],
        detector={"family": "retinanet", "backbone": backbone, "channels": 256},
        parameters=parameters,
        provenance={"role": role, "method": method},
    )
    model = EvaluatedModel(record, fake.CLASSES, TILING, None, lambda *_: fake.make_engine())
    engine = fake.make_engine(noisy_finder(keep, noise), backend="torch", backend_version="2.9")
    result = evaluate_model(model, engine, data)
    return result.model_copy(update={"created": "2026-11-20T10:00:00Z", "seconds": 1.0})


def evaluations(data):
    rows = {
        "teacher": ("teacher", "none", "resnet50", 36_400_000, 0.97, 0.5),
        "plain student": ("student", "none", "resnet18", 11_300_000, 0.8, 1.1),
        "distilled student": ("student", "ifkd", "resnet18", 11_300_000, 0.9, 0.8),
    }
    return {
        name: evaluation(data, name, role=r, method=m, backbone=b, parameters=p, keep=k, noise=n)
        for name, (r, m, b, p, k, n) in rows.items()
    }


def engine_info(precision):
    file = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}[precision]
    return fake.engine_info(
        backend="onnxruntime",
        backend_version="1.24.0",
        device="CPU, 2 threads",
        precision=precision,
        file=file,
        sha256={"fp32": "1", "fp16": "2"}[precision] * 64,
    )


def latency(batch, median_ms, *, spread=0.04, runs=60, jump=1.0):
    random = np.random.default_rng(batch)
    values = median_ms * 1e6 * (1 + np.abs(random.normal(0, spread, runs)))
    values[-runs // 6 :] *= jump
    windows = [[int(value) for value in window] for window in values.reshape(6, -1)]
    samples = TimingSamples([int(median_ms * 2e6)], windows)
    ground = GroundCoverage((fake.TILE, fake.TILE), 24, 0.5)
    return summarize(samples, batch=batch, timing=TimingConfig(), ground=ground)


def model_record(role, name, parameters, gflops, sha256):
    return EvaluatedModelRecord(
        kind="bundle" if role == "student" else "checkpoint",
        name=name,
        path=f"runs/harbor/{name}",
        sha256=sha256,
        detector={"family": "retinanet"},
        parameters=parameters,
        weights_mb=parameters * 4 / 1e6,
        gflops_per_tile=gflops,
        provenance={"role": role},
    )


def stages(precision):
    random = np.random.default_rng(8)
    typical = {"read": 1.9, "preprocess": 0.4, "infer": 38.2, "postprocess": 0.9, "merge": 0.3, "write": 0.2}
    samples = {stage: (value * 1e6 * random.uniform(0.9, 1.2, 24)).astype(int) for stage, value in typical.items()}
    everything = sum(values.sum() for values in samples.values())
    return StageProfile(
        backend="onnxruntime",
        precision=precision,
        images=24,
        tiles=24,
        stages=tuple(
            StageTime(
                stage=stage,
                p50_ms=float(np.median(values)) / 1e6,
                p95_ms=float(np.percentile(values, 95)) / 1e6,
                fraction=float(values.sum() / everything),
                samples_ns=values.tolist(),
            )
            for stage, values in samples.items()
        ),
    )


MACHINE = SystemRecord(
    seconds=41.0,
    samples=82,
    load_before=0.21,
    load_after=1.93,
    cpu_mhz_min=2394.0,
    cpu_mhz_max=2401.0,
    steal_fraction=0.001,
    other_processes_cores=0.06,
    rss_mb_peak=812.0,
    gpus=(),
    nvml="not monitored: nvidia-ml-py is not installed",
)


def process_cost(megabytes):
    return ProcessCost(
        batch=4,
        start_up_ms=1180.0,
        load_ms=120.0,
        first_run_ms=61.0,
        base_rss_mb=104.0,
        peak_rss_mb=193.0 + 3 * megabytes,
        gpu_memory_mb=None,
    )


def bench(*, partial=False):
    cells = [
        BenchCell(
            backend="onnxruntime",
            precision=precision,
            batch=batch,
            engine=EngineRecord.of(engine_info(precision)),
            file_mb=size,
            process_cost=process_cost(size),
            latency=latency(batch, median, jump=1.4 if (precision, batch) == ("fp16", 4) else 1.0),
        )
        for precision, size, batch, median in (
            ("fp32", 45.31, 1, 38.0),
            ("fp32", 45.31, 4, 131.0),
            ("fp16", 22.7, 1, 41.5),
            ("fp16", 22.7, 4, 160.0),
        )
    ]
    cells.append(BenchCell(backend="torch", precision="fp16", batch=1, failure="torch fp16 needs a GPU <here>"))
    student = fake.engine_info(backend="torch", file="model.safetensors", sha256="4" * 64, device="CPU, 2 threads")
    teacher = fake.engine_info(backend="torch", file="best.safetensors", sha256="7" * 64, device="CPU, 2 threads")
    for role, engine, median in (("reference", teacher, 171.0), ("bundle", student, 52.0)):
        record = EngineRecord.of(engine)
        cells.append(
            BenchCell(backend="torch", precision="fp32", batch=1, role=role, engine=record, latency=latency(1, median))
        )
    file = UnmeasuredFile(
        file="engines/generic-rtx1.7-fp16.engine",
        precision="fp16",
        file_mb=24.9,
        sha256="3" * 64,
        builder="tensorrt-rtx 1.7.1",
        built_for="any of compute capability 8.0 and above",
        reason="not measured: needs an NVIDIA GPU",
    )
    return Bench(
        created="2026-11-20T10:05:00Z",
        bundle=BUNDLE,
        timing=TimingConfig(),
        threads=2,
        tiles=TileSource(kind="images", description="the first 12 tiles of test.json, 96x96", tiles=12),
        gsd_m=0.5,
        overlap_px=24,
        cells=tuple(cells),
        model=model_record("student", "harbor-student", 11_300_000, 9.41, "5" * 64),
        reference=model_record("teacher", "harbor teacher", 36_400_000, 41.7, "7" * 64),
        speedups=compute_speedups(cells),
        stages=(stages("fp32"), stages("fp16")),
        machine=MACHINE,
        not_measured=(file,),
        process_peak_mb=812.0,
        partial=partial,
        environment=ENVIRONMENT,
    )


def parity(data, *, drift=None):
    torch = fake.make_engine(backend="torch", backend_version="2.9", file="model.safetensors", sha256="4" * 64)
    reference = ParityReference(torch, data, TILING)
    cells = []
    for precision in ("fp32", "fp16"):
        engine = fake.make_engine()
        engine.info = engine_info(precision)
        if drift is not None and precision == "fp16":
            engine = fake.DriftingEngine(engine, drift)
        cells.append(reference.compare(engine, ToleranceTable().of(precision)))
    passed, words = overall_verdict(tuple(cells))
    return Parity(
        created="2026-11-20T10:06:00Z",
        bundle=BUNDLE,
        data=DataRecord.of(data),
        postprocess=PostprocessConfig(),
        reference=reference.record,
        reference_metrics=reference.metrics,
        cells=tuple(cells),
        passed=passed,
        verdict=words,
    )


def operational_figures_of(objects):
    def rates(labeled, detected, alarms):
        return DetectionRates.of(objects=labeled, detected=detected, false_alarms=alarms, area_km2=1.68)

    total = rates(40, objects - 5, 5)
    return OperationalFigures(
        matching="center", min_iou=None, within_m=20.0, score_threshold=0.3, confidence=0.95, area_km2=1.68,
        total=total, any_class=rates(40, objects - 4, 4),
        per_class={"tanker": rates(4, 4, 0), "cargo": rates(36, objects - 9, 5), "tug": rates(0, 0, 0)},
        size_unit="m", size_limits=(25.0, 100.0),
        per_size={"small": rates(10, 6, 5), "medium": rates(30, objects - 11, 0), "large": rates(0, 0, 0)},
        curve=(
            RatesAtScore(score_threshold=0.3, rates=total),
            RatesAtScore(score_threshold=0.35, rates=rates(40, objects - 8, 2)),
        ),
    )  # fmt: skip


def run_record(objects):
    counts = {"tanker": 4, "cargo": objects - 4, "tug": 0} if objects else {}
    unknown = dict.fromkeys(("mean_ap", "ap75", "f1"))
    score = SceneScore(
        ground_truth="harbor.json", image_id=1, score_threshold=0.3, ap50=0.71, precision=0.86, recall=0.8,
        objects=40, detections=objects, unknown_objects=0, per_class={}, **unknown,
    )  # fmt: skip
    score = score.model_copy(update={"operational": operational_figures_of(objects)}) if objects else score
    scene = SceneRecord(
        name="harbor.tif", path="harbor.tif", driver="GTiff", height_px=2400, width_px=3200, dtype="uint8",
        bands=(1, 2, 3), nodata=None, contrast_stretch=ContrastStretch("as is", (0.0,) * 3, (255.0,) * 3),
        crs="EPSG:32633", georeference="transform",
        transform=(0.5, 0.0, 0.0, 0.0, -0.5, 0.0), gsd_m=0.5,
    )  # fmt: skip
    tiles = TilesRecord(
        count=48, height_px=512, width_px=512, overlap_px=64, empty=6, outside_aoi=0, resumed_rows=0,
        retried_row_ranges=0, unreadable=(),
    )  # fmt: skip
    return RunRecord(
        producer="ifkd detect 0.1.0",
        bundle=BundleReference(path="runs/harbor/bundle", manifest_sha256="b" * 64),
        engine=engine_info("fp32"),
        scene=scene,
        settings=DetectionSettings(
            scale=1.0, overlap_px=64, postprocess=PostprocessConfig(), merge=MergeSettings()
        ),
        tiles=tiles,
        category_ids=(10, 20, 30),
        objects=objects,
        objects_per_class=counts,
        score=score,
        seconds={"read": 0.8, "preprocess": 0.3, "wait": 0.2, "infer": 3.9, "decode": 0.1, "merge": 0.05,
                 "write": 0.4, "total": 5.1},
        files=("detections.geojson", "quicklook.png"),
    )  # fmt: skip


def scene_folder(folder, *, objects=37, pictures=True):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(run_record(objects).model_dump_json())
    (folder / "detections.geojson").write_text("{}")
    if pictures:
        for name, size in (("quicklook.png", (960, 720)), ("quicklook_detail.png", (800, 600))):
            image = Image.new("RGB", size, (38, 66, 84))
            pen = ImageDraw.Draw(image)
            for index in range(objects):
                left, top = (index * 137) % (size[0] - 60), (index * 211) % (size[1] - 40)
                pen.rectangle((left, top, left + 44, top + 16), fill=(150, 150, 140), outline=(240, 160, 40), width=2)
            image.save(folder / name)
    return folder


def full_report(folder, *, drift=None, title="Ships in harbors: from teacher to engine"):
    data = dataset(folder)
    return assemble(
        title=title,
        evaluations=evaluations(data),
        benches=[bench()],
        parities=[parity(data, drift=drift)],
        scenes=[read_scene_run(scene_folder(folder / "scene"))],
        notes=["Demonstration on made-up squares."],
    ).model_copy(update={"created": "2026-11-20T10:07:00Z"})

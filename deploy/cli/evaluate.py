"""`ifkd evaluate`: COCO metrics of a checkpoint or a bundle on labeled images, or of the detections of a scene."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli

if TYPE_CHECKING:
    from deploy.accuracy.evaluation import Evaluation
    from deploy.engines.engine import Backend
    from deploy.scene.scene_score import ClassScore, SceneScore
    from export.bundle.manifest import Precision
    from ifkd.core.config import Schema
    from ifkd.data.metrics import BoxKind, Metrics

LOCAL_BACKENDS = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "torch", "tensorrt")
BACKENDS = (*LOCAL_BACKENDS, "triton")
PRECISIONS = ("fp32", "fp16", "int8", "int8-cpu")


class Arguments(cli.Arguments):
    """Arguments of `ifkd evaluate`."""

    model: Path
    overrides: list[str]
    data: Path | None
    images: Path | None
    scene: Path | None
    score_threshold: float | None
    within_m: float | None
    size_limits: list[float] | None
    boxes: "BoxKind | None"
    backend: "Backend | None"
    server: str | None
    precision: "Precision"
    batch: int
    threads: int | None
    out: Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    kinds = "a checkpoint (.safetensors), the folder of a bundle, an ONNX file or engine in it"
    words = f"{kinds}, or with --scene the output folder of `ifkd detect`"
    parser.add_argument("model", type=Path, help=words)
    add_data_arguments(parser)
    words = "evaluate detections of a scene with its labels (COCO or GeoJSON)"
    parser.add_argument("--scene", type=Path, metavar="LABELS", help=words)
    words = "with --scene: least score for precision, recall and F1 (default: that of the run)"
    parser.add_argument("--score-threshold", type=float, metavar="S", help=words)
    words = (
        "with --scene: for detection probability and false alarms, match centers closer than M meters (default: IoU)"
    )
    parser.add_argument("--within-m", type=float, metavar="M", help=words)
    words = "with --scene: sizes in meters at which medium and large objects begin (default: 25 100)"
    parser.add_argument("--size-limits", type=float, nargs=2, metavar=("MEDIUM", "LARGE"), help=words)
    words = "boxes that are compared (default: oriented if detections and labels have them)"
    parser.add_argument("--boxes", choices=("upright", "oriented"), help=words)
    words = "runtime (default: torch for a checkpoint, onnxruntime for a bundle)"
    parser.add_argument("--backend", choices=BACKENDS, help=words)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision (default: fp32)")
    add_run_arguments(parser)
    words = "the result (default: evaluation.json)"
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"), help=words)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the labeled images."""
    words = "where the data of the recipe moved: data.root=DIR, data.test=FILE or data.images=DIR"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=words)
    words = "labeled images (default: the test split of the recipe)"
    parser.add_argument("--data", type=Path, metavar="COCO.json", help=words)
    parser.add_argument("--images", type=Path, metavar="DIR", help="their folder (default: `images` beside the json)")


def add_bundle_arguments(
    parser: argparse.ArgumentParser, *, out: str, backends: tuple[str, ...], runtimes: str
) -> None:
    """Add the bundle, the file of the result, the runtimes and the precisions."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"the result (default: {out})")
    words = f"{runtimes} (default: onnxruntime)"
    parser.add_argument("--backend", nargs="+", choices=backends, default=["onnxruntime"], help=words)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="precisions (default: all in the bundle)")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Triton's address, the batch size and the number of threads."""
    words = "address of Triton, or of a model on it (default: http://localhost:8000)"
    parser.add_argument("--server", metavar="URL", help=words)
    words = "tiles per run (default: 4)"
    parser.add_argument("--batch", type=cli.positive_int, default=4, metavar="N", help=words)
    words = "CPU threads (default: the runtime's choice)"
    parser.add_argument("--threads", type=cli.positive_int, metavar="N", help=words)


def run(arguments: Arguments) -> dict[str, Any]:
    """Evaluate, write the result and print its table."""
    from ifkd.core.files import require_writable

    require_writable(arguments.out)
    result: Evaluation | SceneScore
    if arguments.scene is not None:
        result, table = _evaluate_scene(arguments, arguments.scene)
    else:
        result, table = _evaluate_images(arguments)
    return write_result(result, table, arguments)


def write_result(result: "Schema", summary: str, arguments: Any) -> dict[str, Any]:
    """Write a result to --out, print its summary and the path, and return it with the path.

    Raises:
        KeyboardInterrupt: The result is partial: the command was interrupted.
    """
    from ifkd.core.files import write_json

    content = result.model_dump(mode="json")
    write_json(arguments.out, content)
    if not arguments.json:
        print(f"{summary}\n{arguments.out}")  # noqa: T201
    if content.get("partial"):
        raise KeyboardInterrupt
    return {**content, "out": str(arguments.out)}


def _evaluate_images(arguments: Arguments) -> "tuple[Evaluation, str]":
    from deploy.accuracy.evaluated_model import bundle_file, open_model
    from deploy.accuracy.evaluation import evaluate_model, open_data
    from ifkd.core.errors import UsageError

    file = bundle_file(arguments.model)
    model = open_model(file.folder if file else arguments.model, server=arguments.server)
    dataset = open_data(
        arguments.data,
        images=arguments.images,
        recipe=model.recipe,
        classes=model.classes,
        command="evaluate",
        overrides=arguments.overrides,
    )
    backend: Backend = arguments.backend or ("torch" if model.record.kind == "checkpoint" else "onnxruntime")
    precision = arguments.precision
    if file is not None:
        backend, precision = file.backend, file.precision
        if arguments.backend not in (None, backend):
            raise UsageError(f"{arguments.model} needs the backend {backend}", got=f"--backend {arguments.backend}")
    if arguments.server is not None and backend != "triton":
        raise UsageError("--server needs --backend triton", got=f"the backend {backend}")
    with model.open(backend, precision, arguments.threads) as engine:
        if file is not None and engine.info.file != file.name:
            raise UsageError(f"{file.name} is not the file that this machine runs", got=engine.info.file)
        evaluation = evaluate_model(model, engine, dataset, batch=arguments.batch, boxes=arguments.boxes)
    metrics = evaluation.metrics
    rows: list[tuple[Any, ...]] = [("all", metrics.mean_ap, metrics.ap50, metrics.ap75, metrics.objects)]
    rows += [(name, one.mean_ap, one.ap50, one.ap75, one.objects) for name, one in metrics.per_class.items()]
    engine_words = f"{evaluation.model.name}: {backend} {precision} on {evaluation.engine.device}"
    head = f"{engine_words}, {metrics.images} images of {evaluation.data.path} in {evaluation.seconds:.1f} s"
    return evaluation, f"{head}{_oriented_text(metrics)}\n{_table(':Class | mAP | AP50 | AP75 | Objects', rows)}"


def _oriented_text(metrics: "Metrics") -> str:
    """Return the other measures of oriented boxes; nothing for upright ones."""
    from deploy.report.tables import shown

    if metrics.boxes == "upright" or metrics.masks is None:
        return ""
    masks = " ".join(f"{value:.3f}" if value is not None else "–" for value in metrics.masks.model_dump().values())
    return (
        f"\nIoU of oriented boxes. mAP, AP50, AP75 of masks: {masks}; AP50 of DOTA: {shown(metrics.dota_ap50, '.3f')}"
    )


def _evaluate_scene(arguments: Arguments, labels: Path) -> "tuple[SceneScore, str]":
    from deploy.accuracy.scene_evaluation import evaluate_scene
    from deploy.report.tables import operational_text
    from deploy.scene.operational_figures import RateOptions
    from ifkd.core.errors import UsageError

    if arguments.data is not None:
        raise UsageError("--scene and --data exclude each other", hint="Name the labels of the scene with --scene.")
    threshold = arguments.score_threshold
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise UsageError("--score-threshold must be from 0 to 1", got=threshold)
    limits = arguments.size_limits
    options = RateOptions(arguments.within_m, None if limits is None else (limits[0], limits[1]))
    score = evaluate_scene(arguments.model, labels, score_threshold=threshold, options=options, boxes=arguments.boxes)
    scores: list[tuple[str, SceneScore | ClassScore]] = [("all", score), *score.per_class.items()]
    rows: list[tuple[Any, ...]] = [
        (name, one.mean_ap, one.ap50, one.ap75, one.precision, one.recall, one.f1, one.objects, one.detections)
        for name, one in scores
    ]
    columns = ":Class | mAP | AP50 | AP75 | Precision | Recall | F1 | Objects | Detections"
    kind = " of oriented boxes" if score.boxes == "oriented" else ""
    head = f"Labels {labels}, score from {score.score_threshold:g}, IoU 0.5{kind}"
    figures = f"\n\n{operational_text(score.operational)}" if score.operational is not None else ""
    return score, f"{head}\n{_table(columns, rows)}{figures}"


def _table(columns: str, rows: "list[tuple[Any, ...]]") -> str:
    """Return rows of a name, metrics (float or None) and counts (int) as a text table."""
    from deploy.report.tables import make_table, shown

    cells = ([str(one) if isinstance(one, int | str) else shown(one, ".3f") for one in row] for row in rows)
    table = make_table("", columns, map(tuple, cells))
    assert table is not None
    return table.plain()

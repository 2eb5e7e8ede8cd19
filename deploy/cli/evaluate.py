"""`ifkd evaluate`: COCO metrics of a checkpoint or a bundle on labeled images, or of a scene's detections."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.accuracy.evaluation import Evaluation
    from deploy.engines.engine import Backend
    from deploy.scene.ground_truth import ClassScore, SceneScore


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "subject",
        type=Path,
        help="a checkpoint (.safetensors), a bundle's folder, an ONNX file or engine in it, or with --scene the folder "
        "of `ifkd detect`",
    )
    parser.add_argument("--data", type=Path, metavar="COCO.json", help="labeled images (the recipe's test split)")
    parser.add_argument(
        "--scene", type=Path, metavar="LABELS", help="compare a scene's detections with its labels (COCO or GeoJSON)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="with --scene: precision, recall and F1 from this score on (the run's)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="their folder (`images` beside the json)")
    parser.add_argument(
        "--backend",
        choices=["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "torch", "tensorrt", "triton"],
        help="what computes (torch for a checkpoint, onnxruntime for a bundle)",
    )
    parser.add_argument("--server", metavar="URL", help="of Triton, or of a model there (http://localhost:8000)")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8", "int8-cpu"], default="fp32")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="tiles run together (4)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the runtime (its own choice)")
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"), help="the result (evaluation.json)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, write the result and print its table."""
    return _run_scene(options) if options.scene is not None else _run_images(options)


def _run_images(options: argparse.Namespace) -> dict[str, Any]:
    from deploy.accuracy.evaluated_model import bundle_file, open_model
    from deploy.accuracy.evaluation import evaluate_model, open_data
    from ifkd.core.errors import UsageError
    from ifkd.core.files import write_json

    if options.batch < 1:
        raise UsageError("--batch must be at least 1", got=options.batch)
    file = bundle_file(options.subject)
    subject = open_model(file.folder if file else options.subject, server=options.server)
    dataset = open_data(
        options.data, images=options.images, recipe=subject.recipe, classes=subject.classes, needed_by="evaluate"
    )
    backend: Backend = options.backend or ("torch" if subject.record.kind == "checkpoint" else "onnxruntime")
    precision = options.precision
    if file is not None:
        backend, precision = file.backend, file.precision
        if options.backend not in (None, backend):
            raise UsageError(f"{options.subject} runs by {backend}", got=f"--backend {options.backend}")
    with subject.open(backend, precision, options.threads) as engine:
        if file is not None and engine.info.file != file.name:
            raise UsageError(f"{file.name} is not the file that would run here", got=engine.info.file)
        evaluation = evaluate_model(subject, engine, dataset, batch=options.batch)
    write_json(options.out, evaluation.model_dump(mode="json"))
    if not options.json:
        print(f"{_table(evaluation)}\n{options.out}")  # noqa: T201
    return {**evaluation.model_dump(mode="json"), "out": str(options.out)}


def _run_scene(options: argparse.Namespace) -> dict[str, Any]:
    from deploy.accuracy.scene_evaluation import evaluate_scene
    from ifkd.core.errors import UsageError
    from ifkd.core.files import write_json

    if options.data is not None:
        raise UsageError("--scene and --data do not go together", hint="Name the scene's labels with --scene alone.")
    if options.score_threshold is not None and not 0.0 <= options.score_threshold <= 1.0:
        raise UsageError("--score-threshold must be from 0 to 1", got=options.score_threshold)
    score = evaluate_scene(options.subject, options.scene, score_threshold=options.score_threshold)
    write_json(options.out, score.model_dump(mode="json"))
    if not options.json:
        print(f"{_scene_table(score)}\n{options.out}")  # noqa: T201
    return {**score.model_dump(mode="json"), "out": str(options.out)}


def _scene_table(score: "SceneScore") -> str:
    from deploy.report.tables import ap
    from ifkd.core.html.table import Table

    def row(name: str, one: "SceneScore | ClassScore") -> tuple[str, ...]:
        shares = (ap(value) for value in (one.mean_ap, one.ap50, one.ap75, one.precision, one.recall, one.f1))
        return (name, *shares, str(one.objects), str(one.detections))

    rows = [row("all", score), *(row(name, one) for name, one in score.per_class.items())]
    table = Table(
        caption="",
        headings=("Class", "mAP", "AP50", "AP75", "Precision", "Recall", "F1", "Objects", "Detections"),
        numeric=(False, True, True, True, True, True, True, True, True),
        rows=tuple(rows),
    )
    return f"Against {score.truth}, at score {score.score_threshold:g} and IoU 0.5\n{table.plain()}"


def _table(evaluation: "Evaluation") -> str:
    from deploy.report.tables import ap
    from ifkd.core.html.table import Table

    metrics = evaluation.metrics
    rows = [("all", ap(metrics.mean_ap), ap(metrics.ap50), ap(metrics.ap75), str(metrics.objects))]
    rows += [
        (name, ap(one.mean_ap), ap(one.ap50), ap(one.ap75), str(one.objects)) for name, one in metrics.per_class.items()
    ]
    table = Table(
        caption="",
        headings=("Class", "mAP", "AP50", "AP75", "Objects"),
        numeric=(False, True, True, True, True),
        rows=tuple(rows),
    )
    engine = evaluation.engine
    return (
        f"{evaluation.subject.name}: {engine.backend} {engine.precision} on {engine.device}, "
        f"{metrics.images} images of {evaluation.data.path} in {evaluation.seconds:.1f} s\n{table.plain()}"
    )

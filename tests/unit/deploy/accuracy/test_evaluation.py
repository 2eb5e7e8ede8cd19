import json

import numpy as np
import pytest
from fakes import drifting_engine as world
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deploy.accuracy import evaluated_model as subjects
from deploy.accuracy.evaluated_model import EvaluatedModel, EvaluatedModelRecord
from deploy.accuracy.evaluation import Evaluation, detect_dataset, evaluate_model, open_data
from deploy.accuracy.image_detection import TilingConfig, cut, detect_images
from deploy.accuracy.provenance import read_result
from deploy.cli.main import main
from export.bundle.bundle import write_manifest
from ifkd.core.config import Schema
from ifkd.core.errors import CheckpointError, DataError, UsageError
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.coco import align_classes, read_coco

RECORD = EvaluatedModelRecord(
    kind="bundle", name="made up", path="x", sha256="0" * 64, detector={}, parameters=7, provenance={}
)


def framing(scale=1.0, **selection):
    return TilingConfig(scale, (world.TILE, world.TILE), 24, PostprocessConfig(**selection))


def subject(scale=1.0):
    return EvaluatedModel(RECORD, world.CLASSES, framing(scale), None, lambda *_: world.engine())


def data_at(path, classes=world.CLASSES):
    return open_data(path, images=None, recipe=None, classes=classes, needed_by="evaluate")


def test_metrics_are_those_pycocotools_gives_for_the_same_boxes(tmp_path, capsys):
    path = world.write_world(tmp_path / "w", images=8)
    noise = np.random.default_rng(3)

    def shaky(tile):
        found = world.squares(tile)
        found.boxes[:] += noise.normal(0, 1.2, found.boxes.shape)
        return found.select(noise.random(len(found)) < 0.8)

    engine = world.engine(shaky)
    dataset = data_at(path)
    results = []

    def remember(tile):
        found = shaky(tile)
        results.append(found)
        return found

    evaluation = evaluate_model(subject(), world.engine(remember), dataset, batch=1)
    truth = COCO(str(path))
    rows = [
        {
            "image_id": index + 1,
            "category_id": 10 * (int(label) + 1),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for index, found in enumerate(results)
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes.clip(0, [96, 80, 96, 80]), found.scores, found.labels, strict=True
        )
    ]
    evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    metrics = evaluation.metrics
    assert [metrics.mean_ap, metrics.ap50, metrics.ap75] == pytest.approx(evaluator.stats[:3], abs=1e-9)
    assert 0.05 < metrics.mean_ap < 0.95
    assert engine.info.classes == tuple(metrics.per_class)


def test_a_perfect_engine_scores_one_and_a_blind_one_nothing(tmp_path):
    dataset = data_at(world.write_world(tmp_path / "w"))
    perfect = evaluate_model(subject(), world.engine(), dataset)
    assert (perfect.metrics.mean_ap, perfect.metrics.ap50) == pytest.approx((1.0, 1.0))
    assert perfect.detections == perfect.data.objects == 24
    assert perfect.data.images == 6
    blind = evaluate_model(subject(), world.engine(lambda _: world.Detections.empty()), dataset)
    assert (blind.metrics.mean_ap, blind.detections) == (0.0, 0)


def test_large_images_are_tiled_and_put_together(tmp_path):
    path = world.write_world(tmp_path / "w", images=2, size=(200, 260), objects=30)
    dataset = data_at(path)
    assert len(cut(np.zeros((200, 260, 3), np.uint8), framing()).windows) == 12
    evaluation = evaluate_model(subject(), world.engine(), dataset)
    assert evaluation.detections == 60
    assert evaluation.metrics.mean_ap == pytest.approx(1.0)


def test_scaled_images_answer_in_their_own_pixels(tmp_path):
    path = world.write_world(tmp_path / "w", images=1, size=(161, 175))  # at half scale 80 x 88
    corner = world.Detections(np.array([[8, 4, 40, 44]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    found = detect_dataset(world.engine(lambda _: corner), data_at(path), framing(scale=0.5), batch=4, label="x")
    right, down = 175 / 88, 161 / 80
    np.testing.assert_allclose(found[1].boxes, [[8 * right, 4 * down, 40 * right, 44 * down]], rtol=1e-6)


def test_what_is_found_in_the_padding_is_dropped(tmp_path):
    path = world.write_world(tmp_path / "w", images=1, size=(60, 50))
    boxes = np.array([[40, 10, 70, 30], [60, 70, 80, 90]], np.float32)
    both = world.Detections(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64))
    found = detect_dataset(world.engine(lambda _: both), data_at(path), framing(), batch=1, label="x")
    np.testing.assert_array_equal(found[1].boxes, [[40, 10, 50, 30]])


def test_batches_change_nothing(tmp_path):
    dataset = data_at(world.write_world(tmp_path / "w", images=5, size=(120, 90)))
    one, many = (dict(detect_images(world.engine(), dataset.images, framing(), batch=batch)) for batch in (1, 4))
    for image_id, answer in one.items():
        np.testing.assert_array_equal(answer.detections.boxes, many[image_id].detections.boxes)
        np.testing.assert_array_equal(answer.detections.scores, many[image_id].detections.scores)


def test_candidates_reach_down_to_half_the_threshold(tmp_path):
    dataset = data_at(world.write_world(tmp_path / "w", images=1))

    def faint(tile):
        found = world.squares(tile)
        found.scores[:] = [0.8, 0.55, 0.35, 0.25]
        return found

    (answer,) = dict(
        detect_images(world.engine(faint), dataset.images, framing(score_threshold=0.6), batch=1, keep_candidates=True)
    ).values()
    assert (len(answer.detections), len(answer.candidates)) == (1, 3)


def test_classes_are_matched_by_name(tmp_path):
    path = world.write_world(tmp_path / "w")
    dataset = data_at(path, classes=("tug", "tanker", "cargo"))
    assert dataset.category_ids == (30, 10, 20)
    original = read_coco(path)
    for image, before in zip(dataset.images, original.images, strict=True):
        names = [dataset.classes[label] for label in image.labels]
        assert names == [original.classes[label] for label in before.labels]


def test_other_classes_are_refused_with_both_lists(tmp_path):
    dataset = read_coco(world.write_world(tmp_path / "w"))
    with pytest.raises(DataError, match=r"tanker.*cargo.*tug.*ferry") as error:
        align_classes(dataset, ("ferry", "cargo", "tug"))
    assert "merge_classes" in str(error.value)


def test_without_data_and_recipe_the_flag_is_named():
    with pytest.raises(DataError, match="--data"):
        open_data(None, images=None, recipe=None, classes=("a",), needed_by="evaluate")


def test_data_without_images_is_refused(tmp_path):
    path = world.write_world(tmp_path / "w", images=0)
    with pytest.raises(DataError, match="no image"):
        data_at(path)


def test_an_image_of_another_size_is_refused(tmp_path):
    path = world.write_world(tmp_path / "w", images=1)
    Image.new("RGB", (50, 50)).save(path.parent / "images" / "0.png")
    with pytest.raises(DataError, match="50"):
        evaluate_model(subject(), world.engine(), data_at(path))


def test_an_evaluation_survives_its_file(tmp_path):
    evaluation = evaluate_model(subject(), world.engine(), data_at(world.write_world(tmp_path / "w", images=1)))
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation.model_dump(mode="json")))
    assert read_result(path, Evaluation) == evaluation


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "bench"}', '{"kind": "evaluation", "schema_version": 2}'])
def test_a_file_that_is_no_evaluation_is_refused(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(DataError, match="not a result of `ifkd evaluate`"):
        read_result(path, Evaluation)


def test_an_absent_result_names_the_verb(tmp_path):
    class Bench(Schema):
        pass

    with pytest.raises(DataError, match="ifkd bench"):
        read_result(tmp_path / "none.json", Bench)


def test_parameters_are_counted_from_the_header(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    tensors = {
        "body.conv.weight": np.zeros((4, 3, 2, 2), np.float32),
        "body.bn.weight": np.zeros(4, np.float32),
        "body.bn.running_mean": np.zeros(4, np.float32),
        "body.bn.running_var": np.zeros(4, np.float32),
        "body.bn.num_batches_tracked": np.zeros((), np.int64),
        "scale": np.zeros((), np.float32),
    }
    path = tmp_path / "w.safetensors"
    numpy_files.save_file(tensors, path, metadata={"ifkd": "{}"})
    assert subjects.count_parameters(path) == 48 + 4 + 1


@pytest.mark.parametrize("content", [b"", b"1234", b"\x40" + bytes(7) + b'{"a": {"sha', b"\x02" + bytes(7) + b"[]"])
def test_broken_weights_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="safetensors"):
        subjects.count_parameters(path)


def test_neither_checkpoint_nor_bundle_is_refused(tmp_path):
    for path, got in ((tmp_path, "model.json"), (tmp_path / "x.txt", "nothing there"), (tmp_path / "y", "nothing")):
        with pytest.raises(UsageError, match=got):
            subjects.open_model(path)


def test_an_onnx_file_is_evaluated_as_its_bundle_says(bundle_copy, tmp_path, write_data_set, capsys):
    manifest = bundle_copy.manifest
    defaults = manifest.defaults.model_copy(update={"overlap_px": 16})
    write_manifest(bundle_copy.path, manifest.model_copy(update={"defaults": defaults}))
    data = write_data_set(tmp_path, "test", images=2)
    content = json.loads(data.read_text())
    for category, name in zip(content["categories"], ("ship", "tug", "ferry"), strict=True):
        category["name"] = name
    data.write_text(json.dumps(content))
    words = ["--data", str(data), "--threads", "1", "--json", "--out"]
    results = []
    for subject, more in ((bundle_copy.path / "model.fp16.onnx", []), (bundle_copy.path, ["--precision", "fp16"])):
        assert main(["evaluate", str(subject), *words, str(tmp_path / "out.json"), *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["engine"] == results[1]["engine"]
    assert (results[0]["engine"]["precision"], results[0]["engine"]["file"]) == ("fp16", "model.fp16.onnx")
    assert results[0]["metrics"] == results[1]["metrics"]


def test_a_file_outside_of_a_bundle_is_refused(tmp_path, whole_bundle, capsys):
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert main(["evaluate", str(tmp_path / "a.onnx")]) == 2
    assert "is in no bundle that knows it" in capsys.readouterr().err
    assert main(["evaluate", str(whole_bundle / "model.onnx"), "--backend", "torch"]) == 2

import json

import numpy as np
import pytest
from fakes import drifting_engine as fake
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deploy.accuracy.evaluated_model import EvaluatedModel, EvaluatedModelRecord
from deploy.accuracy.evaluation import Evaluation, evaluate_model, open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.accuracy.provenance import read_result
from deploy.bench.bench_result import Bench
from ifkd.core.config import parse
from ifkd.core.errors import DataError, UsageError
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.coco import align_classes, read_coco
from ifkd.recipe import Recipe

RECORD = EvaluatedModelRecord(
    kind="bundle", name="made up", path="x", sha256="0" * 64, detector={}, parameters=7, provenance={}
)


def tiling(scale=1.0, **postprocess):
    return TilingConfig(scale, (fake.TILE, fake.TILE), 24, PostprocessConfig(**postprocess))


def model(scale=1.0):
    return EvaluatedModel(RECORD, fake.CLASSES, tiling(scale), None, lambda *_: fake.make_engine())


def data_at(path, classes=fake.CLASSES):
    return open_data(path, images=None, recipe=None, classes=classes, command="evaluate")


def test_metrics_are_those_pycocotools_gives_for_the_same_boxes(tmp_path, capsys):
    path = fake.write_dataset(tmp_path / "w", images=8)
    noise = np.random.default_rng(3)

    def shaky(tile):
        found = fake.find_squares(tile)
        found.boxes[:] += noise.normal(0, 1.2, found.boxes.shape)
        return found.select(noise.random(len(found)) < 0.8)

    engine = fake.make_engine(shaky)
    dataset = data_at(path)
    results = []

    def remember(tile):
        found = shaky(tile)
        results.append(found)
        return found

    evaluation = evaluate_model(model(), fake.make_engine(remember), dataset, batch=1)
    ground_truth = COCO(str(path))
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
    evaluator = COCOeval(ground_truth, ground_truth.loadRes(rows), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    metrics = evaluation.metrics
    assert [metrics.mean_ap, metrics.ap50, metrics.ap75] == pytest.approx(evaluator.stats[:3], abs=1e-9)
    assert 0.05 < metrics.mean_ap < 0.95
    assert engine.info.classes == tuple(metrics.per_class)


def test_a_perfect_engine_scores_one_and_a_blind_one_nothing(tmp_path):
    dataset = data_at(fake.write_dataset(tmp_path / "w"))
    perfect = evaluate_model(model(), fake.make_engine(), dataset)
    assert (perfect.metrics.mean_ap, perfect.metrics.ap50) == pytest.approx((1.0, 1.0))
    assert perfect.detections == perfect.data.objects == 24
    assert perfect.data.images == 6
    blind = evaluate_model(model(), fake.make_engine(lambda _: fake.Detections.empty()), dataset)
    assert (blind.metrics.mean_ap, blind.detections) == (0.0, 0)


def test_classes_are_matched_by_name(tmp_path):
    path = fake.write_dataset(tmp_path / "w")
    dataset = data_at(path, classes=("tug", "tanker", "cargo"))
    assert dataset.category_ids == (30, 10, 20)
    original = read_coco(path)
    for image, before in zip(dataset.images, original.images, strict=True):
        names = [dataset.classes[label] for label in image.labels]
        assert names == [original.classes[label] for label in before.labels]


def test_other_classes_are_refused_with_both_lists(tmp_path):
    dataset = read_coco(fake.write_dataset(tmp_path / "w"))
    with pytest.raises(DataError, match=r"tanker.*cargo.*tug.*ferry") as error:
        align_classes(dataset, ("ferry", "cargo", "tug"))
    assert "merge_classes" in str(error.value)


def test_without_data_and_recipe_the_flag_is_named():
    with pytest.raises(DataError, match="--data"):
        open_data(None, images=None, recipe=None, classes=("a",), command="evaluate")


def test_the_data_of_the_recipe_can_move(recipe_values, data_folder, tmp_path):
    recipe_values["data"]["root"] = "gone"
    recipe = parse(recipe_values, Recipe, source="")
    options = {"images": None, "recipe": recipe, "classes": ("barge", "ferry", "tug"), "command": "evaluate"}
    with pytest.raises(DataError, match=r"data\.root=DIR"):
        open_data(None, **options)
    assert len(open_data(None, **options, overrides=[f"data.root={data_folder}"])) == 4
    with pytest.raises(UsageError, match="named twice"):
        open_data(data_folder / "val.json", **options, overrides=["data.root=x"])


def test_missing_images_are_found_before_the_first_is_read(tmp_path):
    path = fake.write_dataset(tmp_path / "w", images=3)
    (path.parent / "images" / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images of .* are missing: got .*2\.png"):
        data_at(path)


def test_data_without_images_is_refused(tmp_path):
    path = fake.write_dataset(tmp_path / "w", images=0)
    with pytest.raises(DataError, match="no image"):
        data_at(path)


def test_an_image_of_another_size_is_refused(tmp_path):
    path = fake.write_dataset(tmp_path / "w", images=1)
    Image.new("RGB", (50, 50)).save(path.parent / "images" / "0.png")
    with pytest.raises(DataError, match="50"):
        evaluate_model(model(), fake.make_engine(), data_at(path))


def test_an_evaluation_survives_its_file(tmp_path):
    evaluation = evaluate_model(model(), fake.make_engine(), data_at(fake.write_dataset(tmp_path / "w", images=1)))
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation.model_dump(mode="json")))
    assert read_result(path, Evaluation, command="ifkd evaluate") == evaluation


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "bench"}', '{"kind": "evaluation", "schema_version": 2}'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(DataError, match="ifkd evaluate"):
        read_result(path, Evaluation, command="ifkd evaluate")


def test_a_result_of_the_earlier_schema_is_refused_with_the_command_that_creates_it(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('{"kind": "evaluation", "schema_version": 1}')
    with pytest.raises(DataError, match=r"got 1, expected 2.*`ifkd evaluate`"):
        read_result(path, Evaluation, command="ifkd evaluate")


def test_an_absent_result_names_the_command(tmp_path):
    with pytest.raises(DataError, match="ifkd bench"):
        read_result(tmp_path / "none.json", Bench, command="ifkd bench")

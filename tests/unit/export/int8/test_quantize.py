"""INT8 files: quantized layers, the search for layers in float, and calibration."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.cli.main import main
from deploy.engines import open_engine
from export.bundle.bundle import open_bundle
from export.export_plan import plan_export
from export.int8.benchmark import ROUNDS
from export.int8.calibration_tiles import ValidationTiles, calibration_tiles, validation_tiles
from export.int8.quantize import Quantizer
from export.int8.sensitivity import layer_outputs, quantize_within_limit, rank_layers, relative_error
from export.tensorrt.build import build_engine
from export.tiles import structured_noise
from ifkd.core.config import parse
from ifkd.core.errors import DataError, EngineError, VerdictError
from ifkd.data.metrics import Metrics
from ifkd.models.checkpoint import load_checkpoint, save_checkpoint
from ifkd.recipe import CalibrationOptions, Recipe

TILES = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(4)])


def quantizer(whole_bundle: Path, precision: Any, **settings: Any) -> Quantizer:
    return Quantizer(
        whole_bundle / "model.onnx", TILES, precision=precision, calibration=CalibrationOptions.model_validate(settings)
    )


@pytest.fixture(scope="module", params=["int8", "int8-cpu"])
def quantized(request: pytest.FixtureRequest, whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / f"{request.param}.onnx"
    with quantizer(whole_bundle, request.param) as opened:
        opened.write(path)
    return path


def test_all_layers_but_the_last_ones_are_int8_and_the_error_is_small(quantized: Path, whole_bundle: Path) -> None:
    with quantizer(whole_bundle, quantized.stem) as opened:
        summary, last, layers = opened.write(quantized.parent / "again.onnx"), opened.last_layers, opened.layers
    assert (quantized.parent / "again.onnx").read_bytes() == quantized.read_bytes()
    assert len(last) == summary.float_layers == summary.weight_types["FLOAT"] == 10
    assert summary.precision == quantized.stem
    assert summary.layers == len(layers)
    reference, other = (layer_outputs(path, last, TILES) for path in (whole_bundle / "model.onnx", quantized))
    assert 0 < relative_error(reference, other) < 0.2
    assert quantized.stat().st_size < 0.3 * (whole_bundle / "model.onnx").stat().st_size


def test_nothing_is_written_beside_the_source(whole_bundle: Path, tmp_path: Path) -> None:
    """Other processes may be reading the folder."""
    source = Path(shutil.copyfile(whole_bundle / "model.onnx", tmp_path / "model.onnx"))
    (tmp_path / "model-inferred.onnx").mkdir()  # ONNX Runtime's name for its temporary file
    with Quantizer(source, TILES, precision="int8", calibration=CalibrationOptions()) as opened:
        opened.write(tmp_path / "out" / "model.int8.onnx")
    assert (tmp_path / "out" / "model.int8.onnx").is_file()


def test_the_file_for_tensorrt_is_symmetric_with_a_float_bias_and_builds(whole_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    path = tmp_path / "a.onnx"
    with quantizer(whole_bundle, "int8", float_head=False) as opened:
        assert opened.write(path).float_layers == 0
    graph = onnx.load(str(path)).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    assert all(not weights[node.input[2]].any() for node in pairs)
    assert not any(array.dtype == np.int32 and array.size > 1 for array in weights.values())
    metadata = build_engine(path, builder="tensorrt_rtx", precision="int8", max_batch=2, out=tmp_path / "a.engine")
    assert set(metadata.delivered_precision.weight_types) == {"INT8"}


def test_named_layers_stay_in_float_and_a_single_int8_layer_has_a_smaller_error(
    whole_bundle: Path, tmp_path: Path
) -> None:
    source = whole_bundle / "model.onnx"
    with quantizer(whole_bundle, "int8") as opened:
        first = opened.layers[0]
        summary = opened.write(tmp_path / "a.onnx", float_layers=[first])
        assert summary.weight_types["FLOAT"] == 11
        reference = layer_outputs(source, opened.last_layers, TILES[:1])
        all_layers = relative_error(reference, layer_outputs(tmp_path / "a.onnx", opened.last_layers, TILES[:1]))
        opened.write(tmp_path / "b.onnx", float_layers=set(opened.layers) - {opened.layers[1]})
        alone = relative_error(reference, layer_outputs(tmp_path / "b.onnx", opened.last_layers, TILES[:1]))
    assert 0 < alone < all_layers


class FixedMetrics(ValidationTiles):
    """Validation tiles with a given mAP for each file."""

    def evaluate(self, _path: Path) -> Metrics:
        return Metrics(mean_ap=next(MEAN_APS), ap50=0.9, ap75=0.5, images=4, objects=4, per_class={})


MEAN_APS: Any = iter(())


def search(whole_bundle: Path, path: Path, mean_aps: list[float], monkeypatch: pytest.MonkeyPatch, data: Path) -> Any:
    values = parse({"train": str(data / "train.json"), "validation": str(data / "val.json"), "test": "t",
                    "tile_px": 64}, Recipe.model_fields["data"].annotation, source="")  # fmt: skip
    calibration = calibration_tiles(values, CalibrationOptions(tiles=2), classes=("barge", "ferry", "tug"))
    validation = validation_tiles(values, parse({}, Recipe.model_fields["postprocess"].annotation, source=""),
                                classes=("barge", "ferry", "tug"))  # fmt: skip
    monkeypatch.setitem(globals(), "MEAN_APS", iter(mean_aps))
    tiles = FixedMetrics(validation.pixels, validation.dataset, validation.config)
    with quantizer(whole_bundle, "int8") as opened:
        names = [name for name in opened.layers if name not in opened.last_layers]
        ranking = [(name, float(len(names) - index)) for index, name in enumerate(names)]
        monkeypatch.setattr("export.int8.sensitivity.rank_layers", lambda *_: ranking)
        # The file is written once, because the search uses nothing but its mAP.
        opened.write(path)
        monkeypatch.setattr(Quantizer, "write", lambda *_, **__: None)
        source = whole_bundle / "model.onnx"
        return quantize_within_limit(
            opened, source, path, tiles=tiles, calibration=calibration.record, max_map_loss=0.005
        ), names


def test_the_most_sensitive_layers_stay_in_float_until_the_loss_is_within_the_limit(
    whole_bundle: Path, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean_aps = [0.5, 0.40, 0.45, 0.48, 0.496]
    record, names = search(whole_bundle, tmp_path / "a.onnx", mean_aps, monkeypatch, data_folder)
    assert [step.float_layers for step in record.search] == [0, 1, 2, 4]
    assert [round(step.map_loss, 3) for step in record.search] == [0.1, 0.05, 0.02, 0.004]
    assert record.float_layers == tuple(names[:4])
    assert record.passed
    assert len(record.sensitivity) == len(names)


def test_a_small_loss_needs_no_search_and_a_large_loss_is_an_error(
    whole_bundle: Path, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        record, _ = search(whole_bundle, tmp_path / "a.onnx", [0.5, 0.499], patch, data_folder)
    assert (len(record.search), record.sensitivity, record.float_layers) == (1, {}, ())
    with pytest.raises(VerdictError, match=r"a\.onnx is too inaccurate: got a loss of mAP of 0\.1000 with 38 of 78"):
        search(whole_bundle, tmp_path / "a.onnx", [0.5] + [0.4] * 9, monkeypatch, data_folder)


def test_the_ranking_is_in_descending_order(whole_bundle: Path) -> None:
    with quantizer(whole_bundle, "int8") as opened:
        ranking = rank_layers(opened, whole_bundle / "model.onnx", TILES[:1], names=opened.layers[:2])
    assert len(ranking) == 2
    assert ranking[0][1] > ranking[1][1] > 0


def test_layers_with_the_same_weight_have_the_same_precision(whole_bundle: Path, tmp_path: Path) -> None:
    with quantizer(whole_bundle, "int8") as opened:
        own = [name for name in opened.layers if name not in opened.last_layers]
        shared = next(opened.weight_groups[name] for name in own if len(opened.weight_groups[name]) == 5)
        summary = opened.write(tmp_path / "a.onnx", float_layers=[shared[2]])
        assert summary.float_layers == summary.weight_types["FLOAT"] == 10 + 5
        ranking = rank_layers(opened, whole_bundle / "model.onnx", TILES[:1], names=shared)
    assert [name for name, _ in ranking] == [shared[0]]
    assert ranking[0][1] > 0


@pytest.fixture
def trained(checkpoint_path: Path, data_folder: Path, tmp_path: Path) -> Path:
    """The checkpoint with the classes and the images of `data_folder`."""
    checkpoint = load_checkpoint(checkpoint_path)
    from ifkd.models.checkpoint import build_from

    values = checkpoint.meta.recipe.model_dump(mode="json")
    values["data"] |= {"root": str(data_folder), "train": "train.json", "validation": "val.json", "test": "val.json"}
    meta = checkpoint.meta.model_copy(
        update={"classes": ("barge", "ferry", "tug"), "recipe": parse(values, Recipe, source="")}
    )
    save_checkpoint(tmp_path / "trained.safetensors", build_from(checkpoint), meta)
    return tmp_path / "trained.safetensors"


@pytest.mark.slow
def test_a_bundle_has_both_int8_files_with_their_records(
    trained: Path, tmp_path: Path, without_exporting: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    without_exporting()
    words = ["precisions=['int8-cpu', 'int8']", "calibration.tiles=5", "--json"]
    assert main(["export", str(trained), "--out", str(tmp_path / "b"), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    bundle = open_bundle(tmp_path / "b")
    bundle.verify()
    assert (
        set(result["quantization"]) == {"model.int8.onnx", "model.int8-cpu.onnx"} == set(bundle.manifest.quantization)
    )
    record = bundle.manifest.quantization["model.int8.onnx"]
    assert record.calibration.source == "5 of 8 training images of train.json"
    assert len(set(record.calibration.image_ids)) == 5
    assert set(record.calibration.image_ids) <= set(range(100, 108))
    assert (
        json.loads(bundle.file("checks/quantization.json").read_text())["model.int8.onnx"]["head_error"]
        == record.head_error
    )
    tensorrt, cpu = (bundle.manifest.quantization[f"model.{name}.onnx"].decision for name in ("int8", "int8-cpu"))
    assert tensorrt is not None
    assert cpu is not None
    assert (tensorrt.baseline, tensorrt.latency, tensorrt.recommended in (None, False)) == ("fp32", {}, True)
    assert "not measured" in tensorrt.reason or tensorrt.recommended is False
    # The latencies vary; the test checks that both files are measured in turns.
    assert set(cpu.latency) == {"int8-cpu", "fp32"}
    assert {len(one.rounds_ms) for one in cpu.latency.values()} == {ROUNDS}
    assert min(min(one.rounds_ms) for one in cpu.latency.values()) > 0
    assert cpu.speedup["fp32"].min <= cpu.speedup["fp32"].median <= cpu.speedup["fp32"].max
    assert cpu.recommended in (None, False), "a few objects cannot show that no accuracy is lost"
    with open_engine(bundle, precision="int8-cpu", threads=1) as engine:
        assert np.isfinite(engine.infer(TILES).boxes).all()


def test_images_of_other_classes_and_missing_images_are_refused(
    trained: Path, checkpoint_path: Path, data_folder: Path, tmp_path: Path
) -> None:
    content = json.loads((data_folder / "train.json").read_text())
    content["categories"][0]["name"] = "lorry"
    (data_folder / "train.json").write_text(json.dumps(content))
    for checkpoint, message in ((trained, "are not the detector's: got .*'lorry'"), (checkpoint_path, "train.json")):
        with pytest.raises(DataError, match=message):
            plan_export(checkpoint, tmp_path / "b", overrides=["precisions=['int8']"])


def test_calibration_is_deterministic_and_its_digest_depends_on_the_pixels(data_folder: Path) -> None:
    data = parse(
        {"root": str(data_folder), "train": "train.json", "validation": "val.json", "test": "t", "tile_px": 64},
        Recipe.model_fields["data"].annotation,
        source="",
    )
    classes = ("barge", "ferry", "tug")
    first, second = (calibration_tiles(data, CalibrationOptions(tiles=3), classes=classes) for _ in range(2))
    assert first.record == second.record
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert (
        calibration_tiles(data, CalibrationOptions(tiles=4), classes=classes).record.tiles_sha256
        != first.record.tiles_sha256
    )


def test_another_precision_is_refused(whole_bundle: Path) -> None:
    with pytest.raises(EngineError, match="got fp16, expected int8 or int8-cpu"):
        quantizer(whole_bundle, "fp16")


@pytest.mark.parametrize("reduce_range", [True, False])
def test_weights_have_seven_bits_except_in_depthwise_convolutions(tmp_path: Path, reduce_range: bool) -> None:
    random = np.random.default_rng(0)
    shapes = {"stem": (8, 3, 3, 3), "apart": (8, 1, 3, 3), "mixed": (8, 4, 1, 1), "point": (4, 8, 1, 1)}
    groups = {"apart": 8, "mixed": 2}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes, value = [onnx.helper.make_node("Cast", ["tiles"], ["x"], to=onnx.TensorProto.FLOAT, name="cast")], "x"
    for name in shapes:
        nodes.append(
            onnx.helper.make_node("Conv", [value, name], [f"{name}_out"], name=name, group=groups.get(name, 1))
        )
        value = f"{name}_out"
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("tiles", onnx.TensorProto.UINT8, ["batch", 3, 64, 64])],
        [onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "a.onnx")
    settings = CalibrationOptions(float_head=False, reduce_range=reduce_range)
    with Quantizer(tmp_path / "a.onnx", TILES, precision="int8-cpu", calibration=settings) as opened:
        opened.write(tmp_path / "b.onnx")
    written = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "b.onnx").graph.initializer}
    largest = {name: int(np.abs(written[f"{name}_quantized"]).max()) for name in shapes}
    # Depthwise products have 16 bits and their sums 32, in ONNX Runtime's kernels without VNNI as well.
    assert largest == dict.fromkeys(shapes, 64 if reduce_range else 127) | {"apart": 127}

"""The exported ONNX file: interface, operators, metadata and reproducibility."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.export_bundle import PRODUCER
from export.onnx.exportable import ExportableDetector
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from ifkd import recipe
from ifkd.core.files import sha256_of
from ifkd.models import build_detector
from ifkd.models.checkpoint import build_from, load_checkpoint


@pytest.fixture(scope="module")
def model(whole_bundle: Path) -> onnx.ModelProto:
    return onnx.load(str(whole_bundle / "model.onnx"))


def test_names_types_and_shapes_are_as_documented(model: onnx.ModelProto) -> None:
    def describe(value: onnx.ValueInfoProto) -> tuple[str, int, list[object]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]

    types = onnx.TensorProto
    assert [describe(value) for value in model.graph.input] == [("tiles", types.UINT8, ["batch", 3, 64, 64])]
    assert [describe(value) for value in model.graph.output] == [
        ("boxes", types.FLOAT, ["batch", 354, 4]),
        ("scores", types.FLOAT, ["batch", 354]),
        ("labels", types.INT64, ["batch", 354]),
    ]


def test_it_is_one_file_of_opset_20_with_operators_that_all_builders_support(model: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.functions
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    refused = {"NonMaxSuppression", "NonZero", "RoiAlign", "If", "Loop", "Scan"}
    assert not refused & {node.op_type for node in model.graph.node}


def test_the_metadata_is_in_the_file(model: onnx.ModelProto, checkpoint_path: Path) -> None:
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found["ifkd.classes"]) == ["ship", "tug", "ferry"]
    assert json.loads(found["ifkd.tile_px"]) == [64, 64]
    assert found["ifkd.weights_sha256"] == sha256_of(checkpoint_path)
    assert (found["ifkd.name"], found["ifkd.precision"], found["ifkd.producer"]) == ("tiny", "fp32", PRODUCER)
    assert float(found["ifkd.scale"]) == 1.0


def test_the_file_contains_no_trace_of_the_exporting_machine(model: onnx.ModelProto) -> None:
    structure = onnx.ModelProto()
    structure.CopyFrom(model)
    del structure.graph.initializer[:]
    content = structure.SerializeToString()
    for trace in (b".py", b"site-packages", b"stack_trace", b"/home", str(Path(__file__).parents[4]).encode()):
        assert trace not in content


@pytest.mark.slow
def test_a_normalized_pyramid_is_merged_with_its_convolutions(tmp_path: Path) -> None:
    settings = recipe.DetectorOptions(backbone="resnet18", channels=16, pyramid_norm="batch")
    detector = ExportableDetector(build_detector(settings, 3).eval(), tile_px=(64, 64), candidates_per_level=100)
    metadata = OnnxMetadata("tiny", PRODUCER, ("ship", "tug", "ferry"), 1.0, "0" * 64)
    export_onnx(detector, tmp_path / "model.onnx", max_batch=4, metadata=metadata)
    operators = {node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators


@pytest.mark.slow
def test_a_second_export_gives_the_same_bytes(checkpoint_path: Path, whole_bundle: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    detector = ExportableDetector(build_from(checkpoint), tile_px=(64, 64), candidates_per_level=100)
    metadata = OnnxMetadata("tiny", PRODUCER, checkpoint.meta.classes, 1.0, sha256_of(checkpoint_path))
    export_onnx(detector, tmp_path / "again.onnx", max_batch=4, metadata=metadata)
    assert sha256_of(tmp_path / "again.onnx") == sha256_of(whole_bundle / "model.onnx")


def test_any_batch_runs(whole_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(whole_bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        boxes, _, labels = session.run(None, {"tiles": np.zeros((batch, 3, 64, 64), np.uint8)})
        assert boxes.shape == (batch, 354, 4)
        assert set(np.unique(labels)) <= {0, 1, 2}

"""Conversion to FP16, on small graphs; the reference is ONNX Runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.small_onnx import rng, run, small_network
from onnx import TensorProto

from export.precision.fp16 import convert_to_fp16
from export.precision.layers import nodes_between_layers
from ifkd.core.errors import EngineError


def test_fp16_nodes_are_between_the_first_and_the_last_convolution(tmp_path: Path) -> None:
    graph = onnx.load(str(small_network(tmp_path / "a.onnx"))).graph
    assert nodes_between_layers(graph) == {"conv1", "resize", "scale", "conv2"}


def test_the_converted_file_has_the_outputs_of_the_original_and_decodes_in_fp32(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    summary = convert_to_fp16(source, tmp_path / "b.onnx")
    assert summary.weight_types == {"FLOAT16": 2}
    assert summary.precision == "fp16"
    tiles = rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    (reference,), (half,) = run(source, tiles), run(tmp_path / "b.onnx", tiles)
    difference = np.abs(half - reference).max()
    # Neighboring FP16 numbers near 4001 are 2 apart; an FP16 decode has an error of up to 1.
    assert 0 < difference < 0.02


def test_input_types_output_types_and_metadata_are_correct(tmp_path: Path) -> None:
    convert_to_fp16(small_network(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    model = onnx.load(str(tmp_path / "b.onnx"))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {entry.key: entry.value for entry in model.metadata_props} == {"ifkd.precision": "fp16"}


def test_no_value_between_fp32_nodes_is_cast_to_fp16(tmp_path: Path) -> None:
    convert_to_fp16(small_network(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    casts = [node for node in onnx.load(str(tmp_path / "b.onnx")).graph.node if node.op_type == "Cast"]
    assert [(node.input[0], node.attribute[0].i) for node in casts] == [
        ("tiles", TensorProto.FLOAT),
        ("shifted", TensorProto.FLOAT16),
        ("second", TensorProto.FLOAT),
    ]


def test_conversion_is_deterministic(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    for name in ("b.onnx", "c.onnx"):
        convert_to_fp16(source, tmp_path / name)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_weight_above_the_range_of_fp16_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx", largest_weight=70000.0)
    with pytest.raises(EngineError, match="w1 exceeds the range of FP16: got a value of 70000, expected at most 65504"):
        convert_to_fp16(source, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_conversion_works_without_torch(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    program = (
        "import sys; sys.modules.update(torch=None, torchvision=None)\n"
        "from pathlib import Path; from export.precision.fp16 import convert_to_fp16; import export.tensorrt.build\n"
        f"print(convert_to_fp16(Path({str(source)!r}), Path({str(tmp_path / 'b.onnx')!r})).precision)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fp16"

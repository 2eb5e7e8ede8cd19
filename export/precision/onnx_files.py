"""Loading, saving and partial execution of ONNX files."""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from export.bundle.manifest import Precision
from export.precision.integer_indices import require_integer_indices
from export.precision.ort_session import open_session
from ifkd.core.detections import Array
from ifkd.core.files import atomic_path

PRECISION_KEY = "ifkd.precision"
FLOAT_LAYERS_KEY = "ifkd.float_layers"
"""Metadata key of the names of the layers that are FP32 by design, a JSON list."""


def load_with_shapes(path: Path) -> Any:
    """Return the model of an ONNX file with the inferred type and shape of every value."""
    return onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True, data_prop=True)


def save_checked(model: Any, path: Path, *, precision: Precision, float_layers: Collection[str]) -> None:
    """Record precision and FP32 layers in a model's metadata, check the model and write it."""
    for entry in model.metadata_props:
        if entry.key == PRECISION_KEY:
            entry.value = precision
    if float_layers:
        model.metadata_props.add(key=FLOAT_LAYERS_KEY, value=json.dumps(sorted(float_layers)))
    onnx.checker.check_model(model, full_check=True)
    require_integer_indices(model)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def run_model(model: Any, names: Sequence[str], inputs: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """Return the named values of a model for each input; they become its only outputs."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with tempfile.TemporaryDirectory(prefix="ifkd.probe.") as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(model.SerializeToString())
        session = open_session(path)
    used = {value.name for value in session.get_inputs()}
    return [session.run(list(names), {name: one[name] for name in used}) for one in inputs]

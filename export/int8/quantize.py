"""INT8 quantization of an FP32 ONNX file, for TensorRT or for CPUs.

TensorRT requires symmetric activations and weights and a float bias, and fuses the operators between two layers itself.
Q/DQ pairs are therefore at the inputs of layers only. A CPU is fastest with unsigned activations, an integer bias and
integer operators between layers. ONNX Runtime's quantizer supports both.
"""

import contextlib
import importlib
import io
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx

from export.bundle.manifest import Precision
from export.precision.layers import LAYER_OPERATORS, depthwise_weights, last_layers, layer_names, nodes_between_layers
from export.precision.onnx_files import load_with_shapes, save_checked
from export.precision.ort_session import import_onnxruntime
from export.precision.precision_summary import PrecisionSummary, require_precision
from ifkd.core.detections import Array
from ifkd.core.errors import EngineError
from ifkd.recipe import CalibrationOptions

CPU_OPERATORS = ("Add", "Clip", "MaxPool", "Relu", "Resize")
"""Operators between layers that a CPU computes in integers."""


class Quantizer:
    """Writes INT8 files from one FP32 file, with the activation ranges of the first `write`; a context manager."""

    def __init__(self, source: Path, tiles: Array, *, precision: Precision, calibration: CalibrationOptions) -> None:
        """Read the FP32 file `source`; the calibration tiles are uint8 [tiles, 3, height, width].

        Raises:
            EngineError: The precision is not `int8`, for TensorRT, or `int8-cpu`, for ONNX Runtime on a CPU.
            MissingExtraError: ONNX Runtime is not installed.
        """
        if precision not in ("int8", "int8-cpu"):
            problem = "Quantization does not produce this precision"
            raise EngineError(problem, got=precision, expected="int8 or int8-cpu")
        import_onnxruntime(need="Quantization")
        self._quantization: Any = importlib.import_module("onnxruntime.quantization")
        self._model = load_with_shapes(source)
        self._source, self._tiles = source, tiles
        self._precision, self._calibration = precision, calibration
        self._folder = tempfile.TemporaryDirectory(prefix="ifkd.calibration.")
        # ONNX Runtime writes a file with inferred shapes beside the file that it quantizes.
        self._copy = Path(shutil.copyfile(source, Path(self._folder.name) / source.name))
        graph = self._model.graph
        self._between = nodes_between_layers(graph)
        self._nodes = [node.name for node in graph.node]
        self._depthwise = depthwise_weights(graph)
        self.layers = tuple(layer_names(graph))
        """Names of all layers, in order."""
        self.last_layers = last_layers(graph)
        """Names of the layers whose output becomes scores or boxes."""
        weight_of = {node.name: node.input[1] for node in graph.node if node.name in self.layers}
        self.weight_groups = {
            name: tuple(one for one in self.layers if weight_of[one] == weight_of[name]) for name in self.layers
        }
        """Layer -> all layers with its weight, such as the head's at each level; they have the same precision."""

    def write(self, path: Path, *, float_layers: Collection[str] = ()) -> PrecisionSummary:
        """Write an INT8 file with some layers in float, in addition to the last layers if they are configured so.

        Raises:
            EngineError: A layer has an unexpected precision.
        """
        kept = set(float_layers) | (set(self.last_layers) if self._calibration.float_head else set())
        kept = {one for name in kept & set(self.layers) for one in self.weight_groups[name]}
        quantized = Path(self._folder.name) / "quantized.onnx"
        self._quantize(quantized, kept)
        model = onnx.load(str(quantized))
        for part in [model.graph, *model.graph.node]:
            part.ClearField("doc_string")
        model.producer_name, model.producer_version = self._model.producer_name, self._model.producer_version
        save_checked(model, path, precision=self._precision, float_layers=kept)
        return require_precision(path, self._precision)

    def __enter__(self) -> "Quantizer":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_exception: object) -> None:
        self._folder.cleanup()

    def _quantize(self, path: Path, float_layers: Collection[str]) -> None:
        ort, options = self._quantization, self._calibration
        on_cpu, types = self._precision == "int8-cpu", self._quantization.QuantType
        quantized = (self._between if on_cpu else set(self.layers)) - set(float_layers)
        extra: dict[str, Any] = {"CalibStridedMinMax": 1, "CalibPercentile": options.percentile}
        if not on_cpu:
            extra |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
            extra["OpTypesToExcludeOutputQuantization"] = list(LAYER_OPERATORS)
        elif options.reduce_range:
            # Depthwise products are summed in 32 bits, so that 8-bit weights do not saturate.
            eight_bits = [{"quant_type": types.QInt8, "axis": 0, "reduce_range": False}]
            extra["TensorQuantOverrides"] = dict.fromkeys(self._depthwise, eight_bits)
        method = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[options.method]
        try:
            # The quantizer prints messages, but standard output is for the command's result.
            with contextlib.redirect_stdout(io.StringIO()), _no_warnings():
                ort.quantize_static(
                    self._copy,
                    path,
                    _TileReader(self._tiles),
                    quant_format=ort.QuantFormat.QDQ,
                    op_types_to_quantize=[*LAYER_OPERATORS, *(CPU_OPERATORS if on_cpu else ())],
                    per_channel=True,
                    reduce_range=on_cpu and options.reduce_range,
                    activation_type=types.QUInt8 if on_cpu else types.QInt8,
                    weight_type=types.QInt8,
                    nodes_to_quantize=[name for name in self._nodes if name in quantized],
                    calibrate_method=ort.CalibrationMethod[method],
                    extra_options=extra,
                    calibration_cache_path=Path(self._folder.name) / "ranges.json",
                )
        except ValueError as error:
            problem = f"Calibration of {self._source.name} by {options.method} failed ({error})"
            hint = "Set export.calibration.method to minmax; the values of an untrained network hardly differ."
            raise EngineError(problem, hint=hint) from error


class _TileReader:
    """Calibration data reader of ONNX Runtime; it passes one tile at a time, which limits memory."""

    def __init__(self, tiles: Array) -> None:
        self._tiles = tiles
        self.set_range(0, len(tiles))

    def __len__(self) -> int:
        return len(self._tiles)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restrict the reader to a range of tiles."""
        self._rest = iter(self._tiles[start_index:end_index])

    def get_next(self) -> dict[str, Array] | None:
        """Return the next input of the model, or None at the end."""
        tile = next(self._rest, None)
        return None if tile is None else {"tiles": tile[None]}


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence the quantizer's log messages, which recommend steps that do not apply here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

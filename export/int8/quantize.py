"""The INT8 copies of an FP32 ONNX file: one as TensorRT reads it, one as CPUs multiply it.

TensorRT wants both factors symmetric and the bias in float, and fuses by itself what lies between two layers, so
Q/DQ pairs stand at the layers' inputs alone. A CPU is fastest with unsigned activations, an integer bias, and the
operators between two layers in integers as well. ONNX Runtime's quantizer does both; ranges are found once, and the
file is then written as often as a search asks for it, each time with other layers left in float.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from export.bundle.manifest import Precision
from export.precision.fp16 import (
    FLOAT_FRONTIER,
    PrecisionSummary,
    between_layers,
    layers_of,
    load_onnx,
    require_precision,
    save_as,
)
from ifkd.core.detections import Array
from ifkd.core.errors import EngineError, MissingExtraError
from ifkd.recipe import CalibrationOptions

WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
BETWEEN = ("Add", "Clip", "MaxPool", "Relu", "Resize")
"""What a CPU also computes in integers between two layers."""


class Quantizer:
    """Writes INT8 copies of one FP32 file; use it in a `with`, as it keeps ranges in a temporary folder."""

    def __init__(self, source: Path, tiles: Array, *, precision: Precision, calibration: CalibrationOptions) -> None:
        """Read the file; ranges are found at the first `write`.

        Args:
            source: The FP32 file.
            tiles: uint8 [tiles, 3, height, width] to find the ranges of activations on.
            precision: `int8` for TensorRT, `int8-cpu` for ONNX Runtime on a CPU.
            calibration: How ranges are found, and whether the head's last layers stay in float.

        Raises:
            EngineError: Another precision was asked for.
            MissingExtraError: ONNX or ONNX Runtime is not installed.
        """
        if precision not in ("int8", "int8-cpu"):
            raise EngineError("This precision is not made by quantization", got=precision, expected="int8 or int8-cpu")
        onnx = load_onnx()
        self._quantization = _quantization()
        self._model = onnx.shape_inference.infer_shapes(onnx.load(str(source)), strict_mode=True, data_prop=True)
        self._source, self._tiles = source, tiles
        self._precision, self._calibration = precision, calibration
        self._folder = tempfile.TemporaryDirectory(prefix="ifkd.calibration.")
        graph = self._model.graph
        self._between = between_layers(graph)
        self._operators = {node.name: node.op_type for node in graph.node}
        self._depthwise = depthwise_weights(graph)
        self.layers = tuple(layers_of(graph))
        """Names of all layers, in order."""
        self.last_layers = last_layers(graph)
        """Those that no other layer follows: what they give is decoded to scores and boxes."""
        weight_of = {node.name: node.input[1] for node in graph.node if node.name in self.layers}
        self.sharing = {
            name: tuple(one for one in self.layers if weight_of[one] == weight_of[name]) for name in self.layers
        }
        """Layer -> all that have its weight, as a head has one for every level; they are integer together or not."""

    def write(self, path: Path, *, float_layers: Collection[str] = ()) -> PrecisionSummary:
        """Write the file with some layers in float, besides the last ones where the recipe leaves those in float.

        Raises:
            EngineError: A layer became something else than was asked.
        """
        kept = set(float_layers) | (set(self.last_layers) if self._calibration.float_head else set())
        kept = {one for name in kept & set(self.layers) for one in self.sharing[name]}
        self._quantize(Path(self._folder.name) / "quantized.onnx", kept)
        model = load_onnx().load(str(Path(self._folder.name) / "quantized.onnx"))
        for part in [model.graph, *model.graph.node]:
            part.ClearField("doc_string")
        producer = self._model
        model.producer_name, model.producer_version = producer.producer_name, producer.producer_version
        save_as(model, path, precision=self._precision, float_layers=kept)
        return require_precision(path, self._precision)

    def close(self) -> None:
        """Forget the ranges; a second call does nothing."""
        self._folder.cleanup()

    def __enter__(self) -> "Quantizer":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _quantize(self, path: Path, kept: Collection[str]) -> None:
        ort, settings = self._quantization, self._calibration
        on_cpu = self._precision == "int8-cpu"
        operators = [*WITH_WEIGHTS, *(BETWEEN if on_cpu else ())]
        wanted = self._between if on_cpu else set(self.layers)
        names = [name for name in self._operators if name in wanted and name not in kept]
        extra: dict[str, Any] = {"CalibStridedMinMax": 1, "CalibPercentile": settings.percentile}
        if not on_cpu:
            extra |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
            extra["OpTypesToExcludeOutputQuantization"] = list(WITH_WEIGHTS)
        elif settings.reduce_range:
            # What is multiplied by these is not added in pairs of 16 bits, so that nothing saturates.
            whole = [{"quant_type": ort.QuantType.QInt8, "axis": 0, "reduce_range": False}]
            extra["TensorQuantOverrides"] = dict.fromkeys(self._depthwise, whole)
        methods = ort.CalibrationMethod
        method = {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}
        try:
            # The quantizer prints what it does, and standard output belongs to the verb's result.
            with contextlib.redirect_stdout(io.StringIO()), _silent_logging():
                ort.quantize_static(
                    self._source,
                    path,
                    _Reader(self._tiles),
                    quant_format=ort.QuantFormat.QDQ,
                    op_types_to_quantize=operators,
                    per_channel=True,
                    reduce_range=on_cpu and settings.reduce_range,
                    activation_type=ort.QuantType.QUInt8 if on_cpu else ort.QuantType.QInt8,
                    weight_type=ort.QuantType.QInt8,
                    nodes_to_quantize=names,
                    calibrate_method=method[settings.method],
                    extra_options=extra,
                    calibration_cache_path=Path(self._folder.name) / "ranges.json",
                )
        except ValueError as error:
            raise EngineError(
                f"The ranges of {self._source.name} cannot be found by {settings.method} ({error})",
                hint="Set export.calibration.method to minmax; an untrained network has values that hardly differ.",
            ) from error


class _Reader:
    """Hands tiles to ONNX Runtime one by one, so that it never holds the activations of all."""

    def __init__(self, tiles: Array) -> None:
        self._tiles = tiles
        self.set_range(0, len(tiles))

    def __len__(self) -> int:
        return len(self._tiles)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these tiles."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Array] | None:
        """Return the next tile as the graph's input, or None."""
        if self._next >= self._end:
            return None
        self._next += 1
        return {"tiles": self._tiles[self._next - 1 : self._next]}


def depthwise_weights(graph: Any) -> tuple[str, ...]:
    """Return the names of the weights of convolutions that see each channel alone."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and group > 1 and weights.get(node.input[1], ())[:2] == (group, 1):
            found[node.input[1]] = None
    return tuple(found)


def last_layers(graph: Any) -> tuple[str, ...]:
    """Return the names of the layers that no other layer follows before scores or boxes are made, in order.

    Those of a two-stage detector are the last of its proposals and the last of its box head.
    """
    layers = set(layers_of(graph))
    followed: set[str] = set()
    last = []
    for node in reversed(graph.node):
        feeds = any(name in followed for name in node.output) and node.op_type not in FLOAT_FRONTIER
        if node.name in layers and not feeds:
            last.append(node.name)
        if feeds or node.name in layers:
            followed.update(node.input)
    return tuple(reversed(last))


def head_outputs(graph: Any, names: Sequence[str]) -> list[str]:
    """Return the names of the values that these layers give."""
    given = {node.name: node.output[0] for node in graph.node}
    return [given[name] for name in names]


def _quantization() -> Any:
    try:
        import onnxruntime.quantization  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="cpu", need="Quantization") from error
    return onnxruntime.quantization


@contextlib.contextmanager
def _silent_logging() -> Iterator[None]:
    """Keep the quantizer's advice, which is about steps of its own, from the console."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

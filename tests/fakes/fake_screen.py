"""A screen without training: the objectness of a cell is its largest brightness, from 0 to 1."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.bundle.bundle import Bundle, open_bundle, record_file, write_manifest
from export.bundle.screen_record import ScreenParity, ScreenRecord

SCALE, STRIDE = 0.25, 4


def write_screen(path, *, stride=STRIDE):
    """Write the ONNX file of a screen: 0 for black cells, 1 for cells with a white pixel."""
    nodes = [
        onnx.helper.make_node("Cast", ["tiles"], ["float"], to=TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMean", ["float", "channels"], ["gray"], keepdims=1),
        onnx.helper.make_node("MaxPool", ["gray"], ["cells"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        onnx.helper.make_node("Div", ["cells", "white"], ["objectness"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "screen",
        [onnx.helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["batch", 3, "height", "width"])],
        [onnx.helper.make_tensor_value_info("objectness", TensorProto.FLOAT, ["batch", 1, "rows", "columns"])],
        [numpy_helper.from_array(np.array([1]), "channels"), numpy_helper.from_array(np.float32(255), "white")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), str(path))


def add_screen(bundle, *, threshold=0.4, scale=SCALE, stride=STRIDE, margin_px=None, calibration=None) -> Bundle:
    """Add the screen to a bundle and open it again; `calibration` is a ScreenCalibration."""
    write_screen(bundle.path / "screen.onnx", stride=stride)
    file = record_file(bundle.path, "screen.onnx", kind="screen-onnx", precision="fp32")
    parity = ScreenParity(images=1, cells=1, max_difference=0.0, tolerance=0.001, passed=True, onnx_sha256=file.sha256)
    screen = ScreenRecord(
        scale=scale,
        stride=stride,
        context_px=0,
        parameters=0,
        margin_px=margin_px,
        threshold=threshold,
        calibration=calibration,
        checks={"screen.onnx": parity},
    )
    files = {**bundle.manifest.files, "screen.onnx": file}
    write_manifest(bundle.path, bundle.manifest.model_copy(update={"files": files, "screen": screen}))
    return open_bundle(bundle.path)


class BrightnessScreen:
    """The same screen without ONNX Runtime; `screened` counts the pixels that it saw."""

    def __init__(self, *, stride=STRIDE):
        self._stride = stride
        self.screened = 0

    def objectness(self, pixels):
        height, width = pixels.shape[0] // self._stride, pixels.shape[1] // self._stride
        self.screened += height * width * self._stride**2
        cells = pixels.mean(axis=2, dtype=np.float32).reshape(height, self._stride, width, self._stride)
        return cells.max(axis=(1, 3)) / np.float32(255)

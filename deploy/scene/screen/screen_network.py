"""Screen network: the screen of a bundle in ONNX Runtime, on the CPU or on a GPU."""

from typing import Any

import numpy as np

from deploy.engines import GPU_BACKENDS
from deploy.engines.onnxruntime_engine import CUDA, provider_options
from export.bundle.bundle import Bundle
from export.bundle.screen_record import ScreenRecord
from export.precision.ort_session import CPU_PROVIDER, import_onnxruntime, open_session
from ifkd.core.detections import Array
from ifkd.core.environment import usable_cores
from ifkd.core.errors import BundleError, EngineError


class ScreenNetwork:
    """The screen of a bundle; on a GPU if the engine is on one and ONNX Runtime can use it.

    Raises:
        BundleError: The bundle has no screen, or its file is missing or has another digest.
        EngineError: ONNX Runtime cannot load the file.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, bundle: Bundle, *, backend: str | None = None, threads: int | None = None) -> None:
        record = bundle.manifest.screen
        if record is None:
            raise BundleError(f"The bundle {bundle.path} has no screen", hint="Omit --screen.")
        runtime = import_onnxruntime(need="The screen")
        on_gpu = backend in GPU_BACKENDS and CUDA in runtime.get_available_providers()
        self.record: ScreenRecord = record
        self.device = "the first GPU" if on_gpu else "CPU"
        providers = provider_options(CUDA if on_gpu else CPU_PROVIDER, bundle.manifest, precision="fp32")
        self._session: Any = open_session(
            bundle.file(record.file), providers=providers, threads=threads or usable_cores(), spin=True
        )

    def objectness(self, pixels: Array) -> Array:
        """Return the objectness of the cells, float32 [rows, columns], of pixels uint8 [height, width, 3].

        Raises:
            EngineError: The output is not a number from 0 to 1 for each cell.
        """
        tiles = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        (output,) = self._session.run(["objectness"], {"tiles": tiles})
        expected = (1, 1, pixels.shape[0] // self.record.stride, pixels.shape[1] // self.record.stride)
        if output.shape != expected or not ((output >= 0.0) & (output <= 1.0)).all():
            got = f"shape {list(output.shape)}, values from {output.min():g} to {output.max():g}"
            expected_text = f"shape {list(expected)}, values from 0 to 1"
            raise EngineError("The output of the screen is invalid", got=got, expected=expected_text)
        cells: Array = output[0, 0]
        return cells

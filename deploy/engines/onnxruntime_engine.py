"""A bundle's ONNX file on the CPU, by ONNX Runtime."""

from typing import Any

import numpy as np

from deploy.engine import Engine, EngineInfo
from deploy.environment import usable_cores
from export.bundle import Bundle
from export.manifest import Precision
from ifkd.detections import Array, Candidates
from ifkd.errors import BundleError, EngineError, MissingExtraError

OUTPUTS = ("boxes", "scores", "labels")


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime's CPU provider.

    FP16 files give FP16's answers here, but no speed: the provider has no FP16 convolutions and computes in FP32.
    """

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", threads: int | None = None) -> None:
        """Load the bundle's ONNX file of a precision.

        Args:
            bundle: Where the file is.
            precision: Which file.
            threads: CPU threads; by default all cores the process may use.

        Raises:
            BundleError: There is no such file, it was changed, or it is not what the manifest says.
            EngineError: ONNX Runtime cannot load it.
            MissingExtraError: ONNX Runtime is not installed.
        """
        onnxruntime = _onnxruntime()
        names = bundle.find("onnx", precision)
        if not names:
            have = [str(bundle.manifest.files[name].precision) for name in bundle.find("onnx")]
            raise BundleError(
                f"{bundle.path} has no ONNX file in {precision}",
                expected=f"one of {', '.join(sorted(have))}" if have else None,
                mend="Export the checkpoint with this precision.",
            )
        path = bundle.file(names[0])
        count = threads or usable_cores()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), _options(onnxruntime, count), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no base class.
            raise EngineError(f"ONNX Runtime cannot load {path} ({error})", mend="Export the bundle again.") from error
        manifest = bundle.manifest
        self.info = EngineInfo(
            backend="onnxruntime",
            backend_version=str(onnxruntime.__version__),
            device=f"CPU, {count} thread{'s' if count > 1 else ''}",
            precision=precision,
            file=names[0],
            sha256=manifest.files[names[0]].sha256,
            tile_px=manifest.input.tile_px,
            max_batch=manifest.input.max_batch,
            candidates=manifest.outputs.candidates,
            classes=manifest.classes,
        )
        self._input = manifest.input.name
        self._check_signature()

    def _run(self, tiles: Array) -> Candidates:
        if self._session is None:
            raise EngineError("This engine is closed", mend="Open it again.")
        boxes, scores, labels = self._session.run(list(OUTPUTS), {self._input: np.ascontiguousarray(tiles)})
        return Candidates(boxes, scores, labels)

    def close(self) -> None:
        """Drop the session; a second call does nothing."""
        self._session = None

    def _check_signature(self) -> None:
        """Refuse a file whose inputs and outputs are not what the manifest promises."""
        k, (height, width) = self.info.candidates, self.info.tile_px
        expected = {
            self._input: ("tensor(uint8)", [3, height, width]),
            "boxes": ("tensor(float)", [k, 4]),
            "scores": ("tensor(float)", [k]),
            "labels": ("tensor(int64)", [k]),
        }
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        got = {value.name: (value.type, list(value.shape[1:])) for value in values}
        if got != expected:
            raise BundleError(
                f"{self.info.file} is not what the manifest says",
                got=got,
                expected=expected,
                mend="Export the bundle again.",
            )


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads wait actively between the operators of a call, which is faster, and sleep between calls, so that
    # they do not take the cores from reading, merging and writing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _onnxruntime() -> Any:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="cpu", need="The backend onnxruntime") from error
    return onnxruntime

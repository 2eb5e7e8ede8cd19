"""ONNX Runtime on the CPU, as the exporter's checks use it."""

from pathlib import Path
from typing import Any

from ifkd.errors import EngineError, MissingExtraError


def open_session(path: Path) -> Any:
    """Return a session of an ONNX file on the CPU whose threads sleep between operators.

    Raises:
        EngineError: ONNX Runtime cannot load the file.
        MissingExtraError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="cpu", need="Checking ONNX files") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class.
        raise EngineError(f"ONNX Runtime cannot load {path} ({error})", mend="Export the bundle again.") from error

"""ONNX Runtime on the CPU, as the exporter's checks use it."""

from pathlib import Path
from typing import Any

from ifkd.core.errors import EngineError, MissingExtraError


def open_session(path: Path, *, awake: bool = False) -> Any:
    """Return a session of an ONNX file on the CPU.

    Args:
        path: The file.
        awake: Let threads wait actively between operators, as engines do, instead of sleeping.

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
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(awake)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls they always sleep
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class.
        raise EngineError(f"ONNX Runtime cannot load {path} ({error})", hint="Export the bundle again.") from error

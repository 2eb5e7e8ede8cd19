"""ONNX Runtime sessions, for export and for the engines of `deploy`."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ifkd.core.errors import EngineError, MissingExtraError

CPU_PROVIDER = "CPUExecutionProvider"


def import_onnxruntime(*, need: str = "Checking ONNX files", gpu: bool = False) -> Any:
    """Return the package onnxruntime.

    Raises:
        MissingExtraError: It is not installed; the message begins with `need`, and with `gpu` names onnxruntime-gpu.
    """
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        package, extra = ("onnxruntime-gpu", "gpu") if gpu else ("onnxruntime", "cpu")
        raise MissingExtraError(package, extra=extra, need=need) from error
    return onnxruntime


def open_session(
    path: Path,
    *,
    providers: Sequence[tuple[str, Mapping[str, str]]] = ((CPU_PROVIDER, {}),),
    threads: int | None = None,
    spin: bool = False,
) -> Any:
    """Return an ONNX Runtime session of an ONNX file.

    The first provider that starts is used; `threads` are ONNX Runtime's choice by default. With `spin`, threads spin
    between the operators of a call, which is faster; between calls they always sleep and leave the cores to other work.

    Raises:
        EngineError: ONNX Runtime cannot load the file or start the first provider.
        MissingExtraError: ONNX Runtime is not installed.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    hint = "Export the bundle again."
    if len(providers) > 1:
        hint = "Run `ifkd doctor`, which compares the driver, CUDA and the packages."
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot load
            onnxruntime.preload_dlls()  # CUDA's libraries from their wheels, if they are not installed on the system
    try:
        # Without `enable_fallback=0`, it prints the error of a provider, and starts another one.
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise EngineError(f"ONNX Runtime cannot load {path} ({error})", hint=hint) from error
    # A provider whose libraries cannot be loaded is dropped without an error.
    used, first = session.get_providers(), providers[0][0]
    if used[0] != first:
        raise EngineError(f"ONNX Runtime could not start {first}", got=f"{', '.join(used)} instead", hint=hint)
    return session

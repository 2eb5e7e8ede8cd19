"""OpenVINO engine: a bundle's ONNX file on the CPU."""

from typing import Any

import numpy as np

from deploy.engines.engine import Engine, EngineInfo
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest, Precision
from ifkd.core.detections import Array, Candidates
from ifkd.core.environment import usable_cores
from ifkd.core.errors import EngineError, MissingExtraError

DEVICE = "CPU"


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU.

    An FP16 file is computed in bfloat16 where `computes_in_bfloat16` is true, up to the last convolution, and in FP32
    otherwise; `info.compute_type` states which. All other files are computed in their own types. OpenVINO's default
    would be bfloat16 for FP32 files, too.
    """

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", threads: int | None = None) -> None:
        """Compile the bundle's ONNX file of a precision for every batch size and tile size that it accepts.

        Raises:
            BundleError: The file is missing, its digest differs, or its tensors differ from the manifest.
            EngineError: OpenVINO cannot read the file, or cannot run it on this processor.
            MissingExtraError: OpenVINO is not installed.
        """
        openvino = import_openvino(need="The backend openvino")
        manifest, name = bundle.manifest, bundle.onnx_name(precision)
        path, bfloat16 = bundle.file(name), computes_in_bfloat16(manifest, precision)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "NUM_STREAMS": 1,
            # Pinned threads of several engines or processes would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(path), DEVICE, options)
            self._request: Any = compiled.create_infer_request()
            count = int(compiled.get_property("INFERENCE_NUM_THREADS"))  # at most the number of cores
        except RuntimeError as error:
            problem = f"OpenVINO cannot run {path} on this processor ({_last_line(error)})"
            raise EngineError(problem, hint="Export the bundle again, or use the backend onnxruntime.") from error
        self.info = EngineInfo.of_file(
            manifest,
            name,
            backend="openvino",
            version=str(openvino.__version__).split("-")[0],
            device=f"CPU, {count} thread{'s' if count > 1 else ''}",
            compute_type=None if precision != "fp16" else "bf16" if bfloat16 else "fp32",
        )
        self._input = manifest.input.name
        self._check_signature(
            self._input,
            {
                value.any_name: (
                    value.element_type.to_dtype().name,
                    [-1 if length.is_dynamic else length.get_length() for length in value.partial_shape][1:],
                )
                for value in (*compiled.inputs, *compiled.outputs)
            },
        )

    def _run(self, tiles: Array) -> Candidates:
        if self._request is None:
            raise self._closed_error()
        try:
            outputs = self._request.infer({self._input: np.ascontiguousarray(tiles)})
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed to run {self.info.file} ({_last_line(error)})") from error
        # Copies that the request does not keep.
        return Candidates(*(outputs[name] for name in self.info.output_shapes()))

    def close(self) -> None:
        """Drop the compiled model and its memory; a second call does nothing."""
        self._request = None


def import_openvino(*, need: str) -> Any:
    """Return the package openvino.

    Raises:
        MissingExtraError: It is not installed; the message begins with `need`.
    """
    try:
        import openvino  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("openvino", extra="openvino", need=need) from error
    return openvino


def computes_in_bfloat16(manifest: Manifest, precision: Precision) -> bool:
    """Return whether the engine computes a bundle's file in bfloat16: FP16 files of one-stage detectors.

    A two-stage detector decodes its proposals between convolutions, where bfloat16 would round them to whole pixels.
    """
    return precision == "fp16" and manifest.detector.get("family") == "retinanet" and has_bfloat16()


def has_bfloat16() -> bool:
    """Return whether OpenVINO is installed, and this processor has instructions for bfloat16 (AVX512_BF16 or AMX)."""
    try:
        capabilities = import_openvino(need="bfloat16").Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    except (MissingExtraError, RuntimeError):
        return False
    return "BF16" in capabilities  # OpenVINO emulates it on other processors, slowly, and does not list it there


def _last_line(error: RuntimeError) -> str:
    """Return the message of an error of OpenVINO without the lines that name its source files."""
    return str(error).strip().splitlines()[-1]

"""ONNX Runtime engine: a bundle's ONNX file on the CPU, or on a GPU by the CUDA or TensorRT execution provider.

Inputs and outputs are bound to memory of the computing device (I/O binding), one set per tile shape, so that a call
allocates nothing and every copy is explicit.
"""

import ctypes
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.engine import OUTPUT_DTYPES, Backend, Engine, EngineInfo, InferenceTiming, output_shapes
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest, Precision
from export.precision.ort_session import CPU_PROVIDER, import_onnxruntime, open_session
from export.tensorrt.tensorrt_api import load_tensorrt
from ifkd.core.detections import Array, Candidates
from ifkd.core.environment import usable_cores
from ifkd.core.errors import EngineError, IfkdError

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS: dict[Backend, str] = {
    "onnxruntime": CPU_PROVIDER,
    "onnxruntime-cuda": CUDA,
    "onnxruntime-tensorrt": TENSORRT,
}
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}
"""Type of a tensor in ONNX Runtime -> name of its dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class _IoBinding:
    """Bound memory for tiles of one shape."""

    binding: Any
    tiles: Any
    outputs: dict[str, Any]


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with one of its execution providers.

    On the CPU, an FP16 file gives FP16 outputs without a speedup: the CPU provider has no FP16 convolutions and
    computes in FP32. In FP32, the TensorRT provider rounds to TF32; only the environment variable
    NVIDIA_TF32_OVERRIDE=0 prevents it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: Backend = "onnxruntime",
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> None:
        """Load the bundle's ONNX file of a precision; operators that a GPU provider lacks run on the CPU.

        Raises:
            BundleError: The file is missing, its digest differs, or its tensors differ from the manifest.
            EngineError: ONNX Runtime cannot load the file, or has no such provider.
            MissingExtraError: ONNX Runtime is not installed.
        """
        self._on_gpu = backend != "onnxruntime"
        self._ort = import_onnxruntime(need=f"The backend {backend}", gpu=self._on_gpu)
        _require_provider(self._ort, PROVIDERS[backend])
        name = bundle.onnx_name(precision)
        manifest, count = bundle.manifest, threads or usable_cores()
        providers = provider_options(PROVIDERS[backend], manifest)
        self._session: Any = open_session(bundle.file(name), providers=providers, threads=count, spin=True)
        self._bindings: dict[tuple[int, ...], _IoBinding] = {}
        device = "the first GPU" if self._on_gpu else f"CPU, {count} thread{'s' if count > 1 else ''}"
        version = str(self._ort.__version__)
        compute_type: Any = "fp32" if precision == "fp16" and not self._on_gpu else None
        self.info = EngineInfo.of_file(
            manifest, name, backend=backend, version=version, device=device, compute_type=compute_type
        )
        self._input = manifest.input.name
        # ONNX Runtime names a dynamic axis by a string.
        signature = {
            value.name: (
                DTYPES.get(value.type, value.type),
                [-1 if isinstance(length, str) else length for length in value.shape[1:]],
            )
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        self._check_signature(self._input, signature)

    def _run(self, tiles: Array) -> Candidates:
        if self._session is None:
            raise self._closed_error()
        bound = self._bindings.get(tiles.shape)
        if bound is None:
            bound = self._bindings[tiles.shape] = self._bind(tiles.shape)
        # Each of the three steps blocks until the device is done.
        times = [time.perf_counter()]
        bound.tiles.update_inplace(np.ascontiguousarray(tiles))
        times.append(time.perf_counter())
        self._session.run_with_iobinding(bound.binding)
        times.append(time.perf_counter())
        # The next call overwrites the bound memory, so the caller gets copies.
        output = Candidates(*(bound.outputs[name].numpy().copy() for name in OUTPUT_DTYPES))
        times.append(time.perf_counter())
        if self._on_gpu:
            self.last_timing = InferenceTiming(*(1e3 * seconds for seconds in np.diff(times).tolist()))
        return output

    def close(self) -> None:
        """Drop the session and its memory; a second call does nothing."""
        self._bindings = {}
        self._session = None

    def _bind(self, shape: tuple[int, ...]) -> _IoBinding:
        """Return memory on the computing device for tiles of a shape."""
        shapes = output_shapes(self.info.candidates, shape[0])
        device = "cuda" if self._on_gpu else "cpu"

        def allocate(shape: Sequence[int], dtype: Any) -> Any:
            return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)

        tiles = allocate(shape, np.uint8)
        outputs = {name: allocate(shapes[name], dtype.type) for name, dtype in OUTPUT_DTYPES.items()}
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, tiles)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _IoBinding(binding, tiles, outputs)


def provider_options(provider: str, manifest: Manifest) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers in order of preference, each with its options."""
    options: list[tuple[str, dict[str, str]]] = [(CPU_PROVIDER, {})]
    if provider == CPU_PROVIDER:
        return options
    # The CUDA provider computes FP32 in TF32 by default.
    options.insert(0, (CUDA, {"device_id": "0", "use_tf32": "0"}))
    if provider == TENSORRT:
        sizes, largest = manifest.input.sizes, manifest.input.max_batch
        shape = f"{manifest.input.name}:{{0}}x3x{{1[0]}}x{{1[1]}}".format
        shapes = {
            "trt_profile_min_shapes": shape(1, sizes.smallest),
            "trt_profile_opt_shapes": shape(largest, sizes.opt),
            "trt_profile_max_shapes": shape(largest, sizes.largest),
        }
        # Either flag makes the network weakly typed, so that TensorRT may choose types other than the file's.
        # Without them, FP16 and INT8 are exactly where the file has them.
        types = {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
        options.insert(0, (TENSORRT, {"device_id": "0", **types, **shapes}))
    return options


def _linked_tensorrt_major(onnxruntime: Any) -> int | None:
    """Return the major version of TensorRT that ONNX Runtime's provider is linked with; None without that provider."""
    path = Path(str(onnxruntime.__file__)).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not path.is_file():
        return None
    found = re.search(rb"libnvinfer\.so\.(\d+)", path.read_bytes())
    return int(found[1]) if found else None


def _require_provider(onnxruntime: Any, provider: str) -> None:
    """Refuse a provider that ONNX Runtime lacks, or whose TensorRT library cannot be loaded."""
    available = [str(name) for name in onnxruntime.get_available_providers()]
    if provider not in available:
        hint = "Install onnxruntime-gpu in place of onnxruntime: pip install 'ifkd[gpu]'; see `ifkd doctor`."
        raise EngineError(f"The installed ONNX Runtime has no {provider}", got=", ".join(available), hint=hint)
    if provider != TENSORRT:
        return
    linked = _linked_tensorrt_major(onnxruntime)
    try:
        # The libraries of TensorRT's wheels are found after their module has loaded them.
        found = f"TensorRT {load_tensorrt('tensorrt')[1]}"
    except IfkdError as error:
        found = str(error)
    problem: Exception | None = None
    try:
        if linked is not None:
            ctypes.CDLL(f"libnvinfer.so.{linked}")
            return
    except OSError as error:
        problem = error
    raise EngineError(
        "ONNX Runtime's TensorRT provider does not fit the installed TensorRT",
        got=found,
        expected=f"TensorRT {linked}, which it is linked with" if linked else "a provider linked with TensorRT",
        hint="Use the backend tensorrt, or onnxruntime-cuda.",
    ) from problem

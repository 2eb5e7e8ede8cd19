"""A bundle's ONNX file by ONNX Runtime: on the CPU, on a GPU by CUDA, or there by the TensorRT it was made for.

Inputs and outputs are bound to memory of the device that computes, one set for each shape of tiles, so that nothing is
reserved in a call and every copy is one that the engine asks for.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.engines.engine import Backend, Engine, EngineInfo, InferenceParts
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest, Precision
from ifkd.core.detections import Array, Candidates
from ifkd.core.environment import installed_packages, usable_cores
from ifkd.core.errors import BundleError, EngineError, MissingExtraError

Provider = Literal["cpu", "cuda", "tensorrt"]

OUTPUTS: dict[str, Any] = {"boxes": np.float32, "scores": np.float32, "labels": np.int64}
BACKENDS: dict[Provider, Backend] = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-cuda",
    "tensorrt": "onnxruntime-tensorrt",
}
NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""As ONNX Runtime calls them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bound:
    """What tiles of one shape are run with."""

    binding: Any
    tiles: Any
    answers: dict[str, Any]


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime by one of its providers.

    FP16 files give FP16's answers on the CPU, but no speed: it has no FP16 convolutions and computes in FP32. In FP32
    its TensorRT rounds to TF32: the provider has no option against it, only NVIDIA's variable NVIDIA_TF32_OVERRIDE=0.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        provider: Provider = "cpu",
        threads: int | None = None,
    ) -> None:
        """Load the bundle's ONNX file of a precision.

        Args:
            bundle: Where the file is.
            precision: Which file.
            provider: What computes; the CPU takes over operators that a GPU's provider lacks.
            threads: CPU threads; by default all cores the process may use.

        Raises:
            BundleError: There is no such file, it was changed, or it is not what the manifest says.
            EngineError: ONNX Runtime cannot load it, or has not this provider.
            MissingExtraError: ONNX Runtime is not installed.
        """
        onnxruntime = _onnxruntime(provider)
        _require_provider(onnxruntime, provider)
        names = bundle.find("onnx", precision)
        if not names:
            have = [str(bundle.manifest.files[name].precision) for name in bundle.find("onnx")]
            raise BundleError(
                f"{bundle.path} has no ONNX file in {precision}",
                expected=f"one of {', '.join(sorted(have))}" if have else None,
                hint="Export the checkpoint with this precision.",
            )
        manifest, count = bundle.manifest, threads or usable_cores()
        self._ort, self._provider = onnxruntime, provider
        self._session: Any = _open(
            onnxruntime, bundle.file(names[0]), provider_options(provider, manifest), threads=count
        )
        self._bound: dict[tuple[int, ...], _Bound] = {}
        self._parts: InferenceParts | None = None
        self.info = EngineInfo(
            backend=BACKENDS[provider],
            backend_version=str(onnxruntime.__version__),
            device=f"CPU, {count} thread{'s' if count > 1 else ''}" if provider == "cpu" else "the first GPU",
            precision=precision,
            file=names[0],
            sha256=manifest.files[names[0]].sha256,
            tile_px=manifest.input.tile_px,
            max_batch=manifest.input.max_batch,
            candidates=manifest.outputs.candidates,
            classes=manifest.classes,
            tile_sides_px=manifest.input.tile_sides_px,
        )
        self._input = manifest.input.name
        self._check_signature()

    @property
    def parts(self) -> InferenceParts | None:
        """The parts of the last inference, by the host's clock; None on the CPU, and before the first."""
        return self._parts

    def _run(self, tiles: Array) -> Candidates:
        if self._session is None:
            raise EngineError("This engine is closed", hint="Open it again.")
        bound = self._bound.get(tiles.shape)
        if bound is None:
            bound = self._bound[tiles.shape] = self._bind(tiles.shape)
        # Each of the three returns when the device is done.
        moments = [time.perf_counter()]
        bound.tiles.update_inplace(np.ascontiguousarray(tiles))
        moments.append(time.perf_counter())
        self._session.run_with_iobinding(bound.binding)
        moments.append(time.perf_counter())
        # The bound memory is overwritten by the next call, so the caller gets copies.
        answer = Candidates(*(bound.answers[name].numpy().copy() for name in OUTPUTS))
        moments.append(time.perf_counter())
        if self._provider != "cpu":
            self._parts = InferenceParts(*(1e3 * seconds for seconds in np.diff(moments).tolist()))
        return answer

    def close(self) -> None:
        """Drop the session and its memory; a second call does nothing."""
        self._bound = {}
        self._session = None

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        """Return memory for tiles of a shape on the device that computes."""
        batch, k = shape[0], self.info.candidates
        shapes = {"boxes": [batch, k, 4], "scores": [batch, k], "labels": [batch, k]}
        device = "cpu" if self._provider == "cpu" else "cuda"

        def memory(shape: Sequence[int], kind: Any) -> Any:
            return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, device, 0)

        tiles = memory(shape, np.uint8)
        answers = {name: memory(shapes[name], kind) for name, kind in OUTPUTS.items()}
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, tiles)
        for name, value in answers.items():
            binding.bind_ortvalue_output(name, value)
        return _Bound(binding, tiles, answers)

    def _check_signature(self) -> None:
        """Refuse a file whose inputs and outputs are not what the manifest promises."""
        k, sizes = self.info.candidates, self.info.sizes
        expected = {
            self._input: ("tensor(uint8)", [3, *sizes.axes]),
            "boxes": ("tensor(float)", [k, 4]),
            "scores": ("tensor(float)", [k]),
            "labels": ("tensor(int64)", [k]),
        }
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        # ONNX Runtime gives the name of an axis that is free.
        lengths = {
            value.name: [-1 if isinstance(length, str) else length for length in value.shape[1:]] for value in values
        }
        got = {value.name: (value.type, lengths[value.name]) for value in values}
        if got != expected:
            raise BundleError(
                f"{self.info.file} is not what the manifest says",
                got=got,
                expected=expected,
                hint="Export the bundle again.",
            )


def provider_options(provider: Provider, manifest: Manifest) -> list[tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's providers in order of preference, each with its options."""
    options: list[tuple[str, dict[str, str]]] = [(NAMES["cpu"], {})]
    if provider == "cpu":
        return options
    # TF32 is what CUDA takes for FP32 unless it is told not to.
    options.insert(0, (NAMES["cuda"], {"device_id": "0", "use_tf32": "0"}))
    if provider == "tensorrt":
        sizes, largest = manifest.input.sizes, manifest.input.max_batch
        shape = f"{manifest.input.name}:{{0}}x3x{{1[0]}}x{{1[1]}}".format
        wanted = {
            "device_id": "0",
            # Either of the two would make the network weakly typed, and TensorRT free to choose other types than the
            # file's; with neither, FP16 and INT8 are what the file says.
            "trt_fp16_enable": "0",
            "trt_int8_enable": "0",
            "trt_profile_min_shapes": shape(1, sizes.smallest),
            "trt_profile_opt_shapes": shape(largest, sizes.usual),
            "trt_profile_max_shapes": shape(largest, sizes.largest),
        }
        options.insert(0, (NAMES["tensorrt"], wanted))
    return options


def tensorrt_of(onnxruntime: Any) -> int | None:
    """Return the major version of TensorRT that ONNX Runtime's provider is linked with; None where it has none."""
    path = Path(str(onnxruntime.__file__)).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not path.is_file():
        return None
    found = re.search(rb"libnvinfer\.so\.(\d+)", path.read_bytes())
    return int(found[1]) if found else None


def _require_provider(onnxruntime: Any, provider: Provider) -> None:
    """Refuse a provider that ONNX Runtime has not, or whose TensorRT is another than the one installed."""
    have = [str(name) for name in onnxruntime.get_available_providers()]
    if NAMES[provider] not in have:
        raise EngineError(
            f"This ONNX Runtime has no {NAMES[provider]}",
            got=", ".join(have),
            hint="Install onnxruntime-gpu in the place of onnxruntime: pip install 'ifkd[gpu]'",
        )
    if provider != "tensorrt":
        return
    wanted = tensorrt_of(onnxruntime)
    version = installed_packages().get("tensorrt")
    if wanted is None or version is None or int(version.split(".")[0]) != wanted:
        raise EngineError(
            "ONNX Runtime's TensorRT provider and TensorRT do not go together",
            got=f"TensorRT {version}" if version else "no TensorRT",
            expected=f"TensorRT {wanted}, which it is linked with" if wanted else "a provider linked with TensorRT",
            hint="Use the backend tensorrt, or onnxruntime-cuda.",
        )


def _open(onnxruntime: Any, path: Path, providers: Sequence[tuple[str, dict[str, str]]], *, threads: int) -> Any:
    """Return a session whose first provider is the one that was asked for."""
    if len(providers) > 1:
        onnxruntime.preload_dlls()  # CUDA's libraries from their wheels, where they are not on the machine
    try:
        session = onnxruntime.InferenceSession(str(path), _options(onnxruntime, threads), providers=list(providers))
    except Exception as error:  # ONNX Runtime's own exceptions share no base class.
        raise EngineError(f"ONNX Runtime cannot load {path} ({error})", hint="Export the bundle again.") from error
    # A provider that cannot start is left out without an error.
    taken = session.get_providers()
    if taken[0] != providers[0][0]:
        raise EngineError(
            f"ONNX Runtime could not start {providers[0][0]}",
            got=f"{', '.join(taken)} instead",
            hint="Run `ifkd doctor`, which compares the driver, CUDA and the packages.",
        )
    return session


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


def _onnxruntime(provider: Provider) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        package, extra = ("onnxruntime", "cpu") if provider == "cpu" else ("onnxruntime-gpu", "gpu")
        raise MissingExtraError(package, extra=extra, need=f"The backend {BACKENDS[provider]}") from error
    return onnxruntime

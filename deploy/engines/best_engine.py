"""Choose the best engine that a bundle and this machine offer: TensorRT, CUDA, then OpenVINO or ONNX Runtime."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from deploy.engines import EngineOptions
from deploy.engines.engine import Backend
from export.bundle.bundle import Bundle
from export.bundle.manifest import FileKind, Precision
from ifkd.core.environment import gpus
from ifkd.core.errors import BundleError, IfkdError

GPU_FILES: dict[Backend, FileKind] = {"tensorrt": "engine", "onnxruntime-cuda": "onnx"}
"""Backend -> kind of the file that it runs, the fastest first."""
GPU_PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")
UNSUITABLE: dict[Backend, tuple[Precision, ...]] = {"tensorrt": ("int8-cpu",), "onnxruntime-cuda": ("int8", "int8-cpu")}
"""Backend -> precisions whose files are not made for it."""


@dataclass(frozen=True, slots=True)
class BestEngine:
    """A chosen engine."""

    backend: Backend
    precision: Precision
    reason: str | None
    """Reason of the choice; None if backend and precision were given."""


def best_engine(
    bundle: Bundle, *, backend: Backend | None = None, precision: Precision | None = None, gpu: bool = True
) -> BestEngine:
    """Return the best engine with a backend and a precision, if they are given.

    An engine other than ONNX Runtime's for the CPU is opened once to see that it starts; with `gpu` False, none of them
    is tried, because other machines run the engine. INT8 is chosen only if the export recommends it, and FP16 only if
    the file has passed tensor parity. On a machine with a GPU, the reason says why it is not used.

    Raises:
        BundleError: A file of the bundle is missing or differs from the manifest.
    """
    if backend is not None and precision is not None:
        return BestEngine(backend, precision, None)
    refused: list[str] = []
    if backend is None and gpu:
        for one, kind in GPU_FILES.items():
            for other in _precisions(bundle, one, precision):
                suits = other not in UNSUITABLE[one] and bundle.find(kind, other)
                if suits and _starts(bundle, one, other, refused):
                    return BestEngine(one, other, "the first that starts on this GPU")
        two_stages = bundle.manifest.detector.get("family") == "faster_rcnn"
        if two_stages and precision in (None, "fp32") and _starts(bundle, "openvino", "fp32", []):
            return BestEngine("openvino", "fp32", "faster than ONNX Runtime for a two-stage detector, on the CPU")
    chosen: Backend = backend or "onnxruntime"
    suitable = list(_precisions(bundle, chosen, precision))
    best = next((one for one in suitable if bundle.find(GPU_FILES.get(chosen, "onnx"), one)), suitable[0])
    if precision is not None and chosen not in GPU_FILES:
        bundle.onnx_name(best)  # refuses a precision that the bundle lacks
    reason = (
        "recommended by the export" if best.startswith("int8") and precision is None else f"the bundle's {best} file"
    )
    where = "" if backend else ", on the CPU" if gpu else ", on the CPU of each machine"
    if refused and gpus():
        where += f", as {refused[0]}"
    return BestEngine(chosen, best, reason + where)


def chosen_options(options: EngineOptions, bundle: Bundle, *, gpu: bool, log: Callable[[str], object]) -> EngineOptions:
    """Return options with a backend and a precision: those given, or else the best, with a message to `log`."""
    local = gpu and options.server is None
    best = best_engine(bundle, backend=options.backend, precision=options.precision, gpu=local)
    if best.reason is not None:
        log(f"Engine: {best.backend} {best.precision} ({best.reason}); --backend and --precision choose another.")
    return replace(options, backend=best.backend, precision=best.precision)


def _precisions(bundle: Bundle, backend: Backend, precision: Precision | None) -> Iterator[Precision]:
    """Yield the precisions that suit a backend and a bundle, the fastest first; only `precision`, if it is given."""
    if precision is not None:
        yield precision
        return
    if backend == "onnxruntime":  # FP16 is not faster on a CPU
        suitable: tuple[Precision, ...] = ("int8-cpu", "fp32")
    elif backend == "openvino":  # FP16 files are computed in bfloat16, whose rounding exceeds FP16's tolerances
        suitable = ("int8", "int8-cpu", "fp32")
    elif backend in {"tensorrt", "onnxruntime-tensorrt"}:
        suitable = GPU_PRECISIONS
    else:
        suitable = ("fp16", "fp32") if backend == "onnxruntime-cuda" else ("fp32",)
    yield from (one for one in suitable if one == "fp32" or _is_recommended(bundle, one))


def _is_recommended(bundle: Bundle, precision: Precision) -> bool:
    """Return whether the bundle has a file of a precision whose accuracy, and for INT8 speed, the export found good."""
    manifest = bundle.manifest
    for name in bundle.find("onnx", precision):
        if name in manifest.quantization:
            decision = manifest.quantization[name].decision
            return decision is not None and decision.recommended is True
        return name in manifest.checks and manifest.checks[name].passed
    return False


def _starts(bundle: Bundle, backend: Backend, precision: Precision, refused: list[str]) -> bool:
    """Return whether an engine starts; if not, its reason is added to `refused`."""
    try:
        EngineOptions(backend, precision).open(bundle).close()
    except BundleError:
        raise
    except IfkdError as error:
        refused.append(f"{backend} {precision} does not start: {error.problem}")
        return False
    return True

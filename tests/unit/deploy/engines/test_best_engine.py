"""The choice of backend and precision for a bundle, on machines with and without a GPU."""

from collections.abc import Sequence
from typing import Any

import pytest
from fakes.engine_file import with_engine
from fakes.fake_scene import CountingEngine

import deploy.engines
from deploy.engines import EngineOptions
from deploy.engines import best_engine as choice
from deploy.engines.best_engine import BestEngine, best_engine, chosen_options
from deploy.engines.engine import Backend
from export.bundle.bundle import Bundle, add_file
from export.bundle.manifest import (
    CalibrationRecord,
    Precision,
    QuantizationDecision,
    QuantizationRecord,
)
from ifkd.core.errors import BundleError, EngineError


def machine(monkeypatch: pytest.MonkeyPatch, *starting: tuple[Backend, Precision]) -> list[tuple[Backend, Precision]]:
    """Replace the machine by one where the given engines start; return the list of those that are tried."""
    tried = []

    def open_engine(_: Bundle, *, backend: Backend, precision: Precision, **_options: Any) -> Any:
        tried.append((backend, precision))
        if (backend, precision) not in starting:
            raise EngineError("It does not start here")
        return CountingEngine()

    monkeypatch.setattr(deploy.engines, "open_engine", open_engine)
    return tried


def with_int8(bundle: Bundle, precision: Precision, *, recommended: bool | None) -> Bundle:
    """Add an INT8 file with the export's decision."""
    name = f"model.{precision}.onnx"
    (bundle.path / name).write_bytes(b"onnx")
    bundle = add_file(bundle, name, kind="onnx", precision=precision)
    calibration = CalibrationRecord(source="a", image_ids=(), tiles_sha256="0", method="minmax", percentile=None)
    decision = QuantizationDecision(
        baseline="fp32", map_loss=0.0, per_class_loss={}, recommended=recommended, reason="measured"
    )
    record = QuantizationRecord(
        calibration=calibration,
        layers=1,
        float_layers=(),
        sensitivity={},
        search=(),
        max_map_loss=0.005,
        map_loss=0.0,
        per_class_loss={},
        head_error=0.0,
        passed=True,
        decision=decision,
    )
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"quantization": {name: record}}))


GPU: Sequence[tuple[Backend, Precision]] = [
    ("tensorrt", "int8"),
    ("tensorrt", "fp16"),
    ("onnxruntime-cuda", "fp16"),
    ("onnxruntime-cuda", "fp32"),
]


def test_without_a_gpu_the_cpu_runs_fp32(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    found = best_engine(with_engine(bundle_copy))
    assert found == BestEngine("onnxruntime", "fp32", "the bundle's fp32 file, on the CPU")


@pytest.mark.parametrize(("recommended", "precision"), [(True, "int8-cpu"), (False, "fp32"), (None, "fp32")])
def test_int8_runs_on_the_cpu_where_the_export_recommends_it(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, recommended: bool | None, precision: Precision
) -> None:
    machine(monkeypatch)
    found = best_engine(with_int8(bundle_copy, "int8-cpu", recommended=recommended))
    assert (found.backend, found.precision) == ("onnxruntime", precision)
    assert ("recommended by the export" in str(found.reason)) == (recommended is True)


OPENVINO: Sequence[tuple[Backend, Precision]] = [("openvino", "fp16"), ("openvino", "fp32")]


def two_stage(bundle: Bundle) -> Bundle:
    """Return the bundle as one of a Faster R-CNN."""
    detector = {**bundle.manifest.detector, "family": "faster_rcnn"}
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"detector": detector}))


def test_openvino_is_chosen_only_where_it_is_faster_and_as_accurate(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, *OPENVINO)
    assert best_engine(bundle_copy).backend == "onnxruntime"
    found = best_engine(two_stage(bundle_copy))
    assert found == BestEngine("openvino", "fp32", "faster than ONNX Runtime for a two-stage detector, on the CPU")
    assert best_engine(two_stage(bundle_copy), precision="fp16").backend == "onnxruntime"
    assert best_engine(two_stage(bundle_copy), gpu=False).backend == "onnxruntime", "other machines may lack OpenVINO"
    machine(monkeypatch)
    assert best_engine(two_stage(bundle_copy)).backend == "onnxruntime", "OpenVINO does not start"


def test_a_named_openvino_runs_int8_where_it_is_recommended(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    assert best_engine(bundle_copy, backend="openvino").precision == "fp32", "not FP16, which is bfloat16 here"
    assert best_engine(with_int8(bundle_copy, "int8-cpu", recommended=True), backend="openvino").precision == "int8-cpu"


def test_tensorrt_is_preferred_to_cuda_and_fp16_to_fp32(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = machine(monkeypatch, *GPU)
    assert best_engine(bundle_copy).backend == "onnxruntime-cuda"
    found = best_engine(with_engine(bundle_copy))
    assert found == BestEngine("tensorrt", "fp16", "the first that starts on this GPU")
    assert tried == [("onnxruntime-cuda", "fp16"), ("tensorrt", "fp16")]


def test_an_engine_that_does_not_start_leaves_its_place_to_the_next(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = machine(monkeypatch, ("onnxruntime-cuda", "fp32"))
    found = best_engine(with_engine(bundle_copy))
    assert (found.backend, found.precision) == ("onnxruntime-cuda", "fp32")
    assert tried == [("tensorrt", "fp16"), ("onnxruntime-cuda", "fp16"), ("onnxruntime-cuda", "fp32")]


def test_an_fp16_file_that_failed_parity_is_not_chosen(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, *GPU)
    manifest = bundle_copy.manifest
    failed = manifest.checks["model.fp16.onnx"].model_copy(update={"passed": False})
    checks = {**manifest.checks, "model.fp16.onnx": failed}
    bundle = Bundle(bundle_copy.path, manifest.model_copy(update={"checks": checks}))
    assert best_engine(bundle).precision == "fp32"


@pytest.mark.parametrize("precision", ["int8-cpu", "int8"])
def test_int8_files_that_cuda_does_not_compute_faster_run_elsewhere(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    tried = machine(monkeypatch, *GPU, ("onnxruntime-cuda", "int8"), ("onnxruntime-cuda", "int8-cpu"))
    bundle = with_int8(bundle_copy, precision, recommended=True)
    assert best_engine(bundle, precision=precision).backend == "onnxruntime"
    assert tried == []


def test_a_named_tensorrt_takes_the_precision_of_an_engine_that_was_built(bundle_copy: Bundle) -> None:
    assert best_engine(bundle_copy, backend="tensorrt").precision == "fp16"
    (bundle_copy.path / "made.engine").write_bytes(b"plan")
    bundle = add_file(bundle_copy, "made.engine", kind="engine", precision="fp32")
    assert best_engine(bundle, backend="tensorrt").precision == "fp32"


def test_on_a_machine_with_a_gpu_the_reason_says_why_it_is_not_used(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    monkeypatch.setattr(choice, "gpus", lambda: [{"name": "NVIDIA H200"}])
    reason = best_engine(bundle_copy).reason
    assert reason is not None
    assert reason.endswith(", on the CPU, as onnxruntime-cuda fp16 does not start: It does not start here")


def test_a_damaged_bundle_is_refused_and_not_run_on_the_cpu(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any, **__: Any) -> Any:
        raise BundleError("model.onnx differs from the manifest")

    monkeypatch.setattr(deploy.engines, "open_engine", damaged)
    with pytest.raises(BundleError, match="differs from the manifest"):
        best_engine(bundle_copy)


def test_options_overrule_the_choice(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = machine(monkeypatch, *GPU)
    bundle = with_engine(bundle_copy)
    assert best_engine(bundle, backend="torch", precision="fp16") == BestEngine("torch", "fp16", None)
    found = best_engine(bundle, backend="onnxruntime-cuda")
    assert (found.backend, found.precision) == ("onnxruntime-cuda", "fp16")
    assert tried == [], "a named backend is not replaced"
    found = best_engine(bundle, precision="fp32")
    assert (found.backend, found.precision) == ("onnxruntime-cuda", "fp32")
    found = best_engine(bundle, gpu=False)
    assert (found.backend, found.precision) == ("onnxruntime", "fp32")


def test_the_choice_is_stated_in_one_line(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    lines: list[str] = []
    options = chosen_options(EngineOptions(None, None, 2), bundle_copy, gpu=True, log=lines.append)
    assert options == EngineOptions("onnxruntime", "fp32", 2)
    assert lines == [
        "Engine: onnxruntime fp32 (the bundle's fp32 file, on the CPU); --backend and --precision choose another."
    ]
    assert chosen_options(options, bundle_copy, gpu=True, log=lines.append) == options
    assert len(lines) == 1

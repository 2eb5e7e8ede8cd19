"""OpenVINO's own settings and errors; the contract of all engines is tested elsewhere."""

import sys
import types
from typing import Any

import numpy as np
import openvino
import pytest

import deploy.engines.openvino_engine as module
from deploy.engines import open_engine
from deploy.engines.openvino_engine import has_bfloat16
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.environment import describe_environment
from ifkd.core.errors import EngineError

TILES = np.zeros((1, 3, 64, 64), np.uint8)


def installed(monkeypatch: pytest.MonkeyPatch, core: type) -> None:
    """Install a package openvino with another `Core`."""
    fake = types.ModuleType("openvino")
    fake.Core, fake.__version__ = core, "0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openvino", fake)


def convolution_types(engine: Any) -> set[str]:
    """Return the types in which the compiled model computes convolutions, as OpenVINO itself reports them."""
    nodes = engine._request.get_compiled_model().get_runtime_model().get_ops()
    infos = [{key: value.astype(str) for key, value in node.get_rt_info().items()} for node in nodes]
    return {info["runtimePrecision"] for info in infos if info["layerType"] == "Convolution"}


@pytest.mark.parametrize(
    ("precision", "bfloat16", "compute_type", "computed"),
    [("fp32", True, None, "f32"), ("fp16", True, "bf16", "bf16"), ("fp16", False, "fp32", "f32")],
)
def test_only_fp16_is_computed_in_bfloat16_and_the_engine_states_it(
    precision: Precision,
    bfloat16: bool,
    compute_type: str | None,
    computed: str,
    bundle_copy: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if bfloat16 and precision == "fp16" and not has_bfloat16():
        pytest.skip("this processor has no instructions for bfloat16")
    monkeypatch.setattr(module, "has_bfloat16", lambda: bfloat16)
    with open_engine(bundle_copy, backend="openvino", precision=precision, threads=1) as engine:
        assert (engine.info.precision, engine.info.compute_type) == (precision, compute_type)
        assert convolution_types(engine) == {computed}


def test_two_stage_detectors_do_not_decode_proposals_in_bfloat16(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    manifest = bundle_copy.manifest
    two_stages = manifest.model_copy(update={"detector": {**manifest.detector, "family": "faster_rcnn"}})
    assert [module.computes_in_bfloat16(one, "fp16") for one in (manifest, two_stages)] == [True, False]


def test_bfloat16_is_known_from_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx512_bf16" in describe_environment()["cpu"]["features"]:
        assert has_bfloat16()

    class WithoutBfloat16:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    installed(monkeypatch, WithoutBfloat16)
    assert not has_bfloat16()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not has_bfloat16()


def test_an_engine_uses_the_threads_it_was_given_and_pins_none(bundle_copy: Bundle) -> None:
    with open_engine(bundle_copy, backend="openvino", threads=1) as engine:
        compiled = engine._request.get_compiled_model()  # type: ignore[attr-defined]
        names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
        assert [compiled.get_property(name) for name in names] == [1, 1, False]
        assert engine.info.device == "CPU, 1 thread"


def test_an_unsupported_processor_and_a_failing_inference_are_reported_with_openvinos_reason(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "Exception from src/core.cpp:112:\nException from src/plugin.cpp:9:\nThe ISA is not supported\n\n"

    def fail(*_: object) -> None:
        raise RuntimeError(reason)

    with open_engine(bundle_copy, backend="openvino", threads=1) as engine:
        engine._request = types.SimpleNamespace(infer=fail)  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match=r"OpenVINO failed to run model\.onnx \(The ISA is not supported\)"):
            engine.infer(TILES)

    class OldProcessor(openvino.Core):  # type: ignore[misc]
        compile_model = fail

    installed(monkeypatch, OldProcessor)
    with pytest.raises(EngineError, match=r"model\.onnx on this processor \(The ISA is not supported\).*onnxruntime"):
        open_engine(bundle_copy, backend="openvino", threads=1)

"""Engine builds by TensorRT-RTX, which needs no GPU, and by TensorRT's bindings on a stand-in for its libraries."""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.fake_cuda import FakeGpu
from fakes.tensorrt_stand_in import StandIn
from onnx import TensorProto, numpy_helper

from deploy.cli.main import main
from deploy.engines import open_engine, tensorrt_engine
from export.bundle.bundle import Bundle, open_bundle, record_file, write_manifest
from export.bundle.engine_metadata import (
    BuildOptions,
    DeliveredPrecision,
    engine_metadata_path,
    read_engine_metadata,
    require_delivered,
)
from export.bundle.screen_record import ScreenRecord
from export.bundle.verification import verify_bundle
from export.screen.screen_export import ExportableScreen, ScreenPlan, check_screen, write_onnx
from export.tensorrt import build, tensorrt_api
from export.tensorrt.build import add_engine, build_engine
from export.tensorrt.builder_config import configure
from export.tensorrt.tensorrt_api import Gpu
from ifkd.core.errors import BundleError, EngineError, MissingExtraError
from ifkd.core.files import sha256_of
from ifkd.recipe import ScreenOptions
from ifkd.screen.network import Screen

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

HALF = json.dumps({"Layers": [{"Inputs": [{"Format/Datatype": "Half"}]}]})


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> StandIn:
    """TensorRT on a machine with a GPU, and layers in FP16."""
    monkeypatch.setattr(build, "gpu_of_this_machine", lambda: Gpu("NVIDIA Test GPU 80GB", "9.0", "13.0"))
    stand_in.layers = HALF
    return stand_in


def built(bundle: Bundle, options: BuildOptions) -> list[str]:
    """Return the lines of an FP16 engine, which the stand-in built."""
    bundle, name, _ = add_engine(bundle, builder="tensorrt", precision="fp16", options=options)
    return (bundle.path / name).read_text().splitlines()


def test_engines_of_both_precisions_have_metadata(bundle_copy: Bundle) -> None:
    bundle, metadata = bundle_copy, {}
    for precision in ("fp32", "fp16"):
        bundle, name, metadata[precision] = add_engine(bundle, builder="tensorrt_rtx", precision=precision)
        assert name == f"engines/portable-tensorrt-rtx{rtx.__version__}-{precision}.engine"
        found = metadata[precision]
        assert read_engine_metadata(engine_metadata_path(bundle.path / name)) == found
        assert found.onnx_sha256 == bundle.manifest.files[found.onnx_file].sha256
        assert found.engine_sha256 == sha256_of(bundle.path / name) == bundle.manifest.files[name].sha256
        assert (found.batch.min, found.batch.opt, found.batch.max, found.tile_px) == (1, 4, 4, (64, 64))
        assert (found.device, found.tf32, found.requested_precision) == ("portable", False, precision)
    assert metadata["fp16"].engine_bytes < 0.6 * metadata["fp32"].engine_bytes
    assert set(metadata["fp16"].delivered_precision.weight_types) == {"FLOAT16"}
    assert 0.9 < metadata["fp16"].delivered_precision.size_ratio < 1.5
    reopened = open_bundle(bundle.path)
    reopened.verify()
    assert len(reopened.find("engine")) == len(reopened.find("engine-metadata")) == 2


def test_the_command_also_builds_the_engine_of_a_screen(bundle_copy: Bundle) -> None:
    """Of any size that is screened; `ifkd verify` compares it with its source, and detectors do not take it."""
    network = ExportableScreen(Screen(ScreenOptions(channels=8)))
    plan = ScreenPlan(network, "0" * 64, ScreenOptions(channels=8))
    write_onnx(plan, bundle_copy.path / "screen.onnx")
    file = record_file(bundle_copy.path, "screen.onnx", kind="screen-onnx", precision="fp32")
    check = check_screen(network, bundle_copy.path / "screen.onnx", np.zeros((1, 3, 64, 64), np.uint8), "fp32")
    record = ScreenRecord(
        scale=0.25, stride=8, context_px=43, parameters=1, threshold=0.5, checks={"screen.onnx": check}
    )
    files = {**bundle_copy.manifest.files, "screen.onnx": file}
    write_manifest(bundle_copy.path, bundle_copy.manifest.model_copy(update={"files": files, "screen": record}))
    assert main(["engine", str(bundle_copy.path), "--precision", "fp32", "--json"]) == 0
    bundle = open_bundle(bundle_copy.path)
    (name,) = bundle.find("screen-engine")
    assert name == f"engines/screen-portable-tensorrt-rtx{rtx.__version__}-fp32.engine"
    metadata = read_engine_metadata(engine_metadata_path(bundle.path / name))
    assert (metadata.onnx_file, metadata.batch.max, metadata.tile_px) == ("screen.onnx", 1, (512, 2048))
    assert bundle.find("engine") == [f"engines/portable-tensorrt-rtx{rtx.__version__}-fp32.engine"]
    found = verify_bundle(bundle.path)
    assert found.differences == ()
    assert found.evidence[name].startswith("built from screen.onnx by tensorrt_rtx")
    (bundle.path / name).write_bytes(b"changed")
    assert any(name in one for one in verify_bundle(bundle.path).differences)


def test_a_file_of_another_precision_is_refused_by_the_build(whole_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Not all layers of model\.onnx are fp16"):
        build_engine(
            whole_bundle / "model.onnx",
            builder="tensorrt_rtx",
            precision="fp16",
            max_batch=2,
            out=tmp_path / "a.engine",
        )
    assert list(tmp_path.iterdir()) == []


def test_the_error_contains_the_message_of_the_builder_and_nothing_is_written(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Conv", ["tiles", "w"], ["y"], name="conv"),
        onnx.helper.make_node("NonZero", ["y"], ["z"], name="refused"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [onnx.helper.make_tensor_value_info("z", TensorProto.INT64, ["rank", "n"])],
        [numpy_helper.from_array(np.zeros((4, 3, 1, 1), np.float32), "w")],
    )
    path = tmp_path / "refused.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), str(path))
    with pytest.raises(EngineError, match=r"cannot read refused\.onnx \(.*NonZero"):
        build_engine(path, builder="tensorrt_rtx", precision="fp32", max_batch=2, out=tmp_path / "a.engine")
    assert [entry.name for entry in tmp_path.iterdir()] == ["refused.onnx"]


def test_networks_are_strongly_typed_in_every_version_of_tensorrt(tensorrt: StandIn, bundle_copy: Bundle) -> None:
    strongly_typed = 1 << int(tensorrt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    bundle, name, metadata = add_engine(
        bundle_copy, builder="tensorrt", precision="fp16", options=BuildOptions(tf32=True)
    )
    flags = strongly_typed if tensorrt.version.startswith("10.") else 0
    assert f"network-flags {flags}" in (bundle.path / name).read_text().splitlines()
    assert name == f"engines/nvidia-test-gpu-80gb-tensorrt{tensorrt.version}-fp16-tf32.engine"
    assert (metadata.device, metadata.compute_capability, metadata.tf32) == ("NVIDIA Test GPU 80GB", "9.0", True)
    assert metadata.delivered_precision.layer_formats == {"Half": 1}


def test_an_old_tensorrt_is_refused(tensorrt: StandIn, bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt.module, "__version__", "10.0.1")
    with pytest.raises(EngineError, match=r"too old: got 10\.0\.1, expected at least 10\.1"):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")


def test_the_timing_cache_is_reused_by_the_next_build(tensorrt: StandIn, bundle_copy: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "timings"
    options = BuildOptions(timing_cache=path)
    for before, used in ((None, ""), (b"learned", "learned"), (b"of another GPU", ""), (b"damaged", "")):
        if before is not None:
            path.write_bytes(before)
        assert f"timing-cache {used}" in built(bundle_copy, options)
        assert path.read_bytes() == b"learned"


def test_layer_formats_are_read_from_the_inspectors_of_both_versions(tensorrt: StandIn, bundle_copy: Bundle) -> None:
    layers = [
        {"Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Half"}]},
        {"Outputs": [{"Format": "NHWC8", "Datatype": "Half"}], "Weights": {"Type": "Int8", "Count": 9}},
        {"Inputs": [{"Datatype": "Int8"}], "Outputs": [{"Datatype": "Float"}, {"Datatype": "Float"}]},
        {"Inputs": [], "Outputs": None},
        "a layer without details",
    ]
    tensorrt.layers = json.dumps({"Layers": layers})
    _, _, metadata = add_engine(bundle_copy, builder="tensorrt", precision="fp16")
    assert metadata.delivered_precision.layer_formats == {"Float": 1, "Half": 2, "Int8": 2}


def test_a_missing_tensorrt_names_its_extra(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ifkd\[tensorrt-cu13\]' or 'ifkd\[tensorrt-cu12\]'"):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")


def test_libraries_that_cannot_be_loaded_have_their_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"libraries cannot be loaded \(libnvinfer"):
        tensorrt_api.load_tensorrt("tensorrt")


def test_a_missing_precision_and_a_changed_file_are_refused(full_copy: Bundle) -> None:
    with pytest.raises(BundleError, match="has no ONNX file in int8: expected one of fp16, fp32"):
        add_engine(full_copy, builder="tensorrt_rtx", precision="int8")
    with (full_copy.path / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="differs from the manifest"):
        add_engine(full_copy, builder="tensorrt_rtx", precision="fp32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 1, "device": "portable"}', "has another schema version: got 1, expected 2"),
        ('{"schema_version": 2, "device": 1}', "is invalid at device"),
    ],
)
def test_invalid_metadata_is_a_bundle_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BundleError, match=f"{message}.*Build the engine again"):
        read_engine_metadata(tmp_path / "a.json")


def test_the_command_builds_engines_and_prints_their_paths(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", str(bundle_copy.path), "--precision", "fp16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (name,) = result["engines"]
    assert (bundle_copy.path / name).stat().st_size == result["engines"][name]["engine_bytes"]
    assert main(["engine", str(bundle_copy.path), "--precision", "fp16"]) == 0
    assert str(bundle_copy.path / name) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "layers", "message"),
    [
        (
            "fp16",
            {"Float": 9},
            r"No layer of the engine a\.engine computes in fp16: got 9 Float, expected Half or FP16",
        ),
        ("int8", {"Half": 3, "Float": 9}, "No layer of the engine a.engine computes in int8"),
    ],
)
def test_an_engine_of_another_precision_is_refused(precision: Any, layers: dict[str, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        require_delivered(
            DeliveredPrecision(weight_types={}, size_ratio=1.0, layer_formats=layers), precision, "a.engine"
        )


@pytest.mark.parametrize("layers", [None, {"Half": 1, "Int8": 2}])
def test_the_size_of_an_engine_says_nothing_about_its_precision(layers: dict[str, int] | None) -> None:
    # Each profile has kernels of its own, so that a good INT8 engine can be several times as large as its weights.
    for precision in ("fp16", "int8"):
        require_delivered(
            DeliveredPrecision(weight_types={}, size_ratio=9.0, layer_formats=layers), precision, "a.engine"
        )


def test_all_options_are_set_on_the_builder(bundle_copy: Bundle, tensorrt: StandIn) -> None:
    options = BuildOptions(optimization_level=5, workspace_mib=64, compatibility="ampere_plus")
    lines = built(bundle_copy, options)
    module = tensorrt.module
    tf32, workspace = int(module.BuilderFlag.TF32), int(module.MemoryPoolType.WORKSPACE)
    compatibility = int(module.HardwareCompatibilityLevel.AMPERE_PLUS)
    assert {
        f"memory-pool-{workspace} {64 << 20}",
        f"flag-{tf32} 0",
        "optimization_level 5",
        f"compatibility {compatibility}",
        "profile 4 1 3 64 64 4 3 64 64 4 3 64 64",
    } <= set(lines)
    assert f"flag-{tf32} 1" in built(bundle_copy, options.model_copy(update={"tf32": True}))


def test_rtx_engines_allow_graphs() -> None:
    log = tensorrt_api.MessageLog()
    config = rtx.Builder(log.of(rtx)).create_builder_config()
    assert not config.get_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
    configure(rtx, config, "tensorrt_rtx", BuildOptions())
    assert config.get_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_a_compatibility_that_this_tensorrt_lacks_is_refused(
    tensorrt: StandIn, bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = tensorrt.module.HardwareCompatibilityLevel
    if hasattr(level, "SAME_COMPUTE_CAPABILITY"):
        older = types.SimpleNamespace(NONE=level.NONE, AMPERE_PLUS=level.AMPERE_PLUS)
        monkeypatch.setattr(tensorrt.module, "HardwareCompatibilityLevel", older)
    options = BuildOptions(compatibility="same_compute_capability")
    message = rf"no hardware compatibility same_compute_capability: got TensorRT {tensorrt.version}, expected 10\.9 or"
    with pytest.raises(EngineError, match=message):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16", options=options)
    assert not (bundle_copy.path / "engines").exists()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("start", r"cannot start \(pybind11::init\(\)"),
        ("set_shape", r"refuses the batch or tile sizes of model\.fp16\.onnx \(Shape provided for min is inconsistent"),
        ("add_optimization_profile", "refuses an optimization profile: got batches of 1 to 4"),
        ("build", r"cannot build model\.fp16\.onnx \(Could not find any implementation for node head\)"),
        ("parse", r"cannot read model\.fp16\.onnx \(No importer registered for op: NonZero\)"),
    ],
)
def test_what_the_builder_refuses_is_an_engine_error(
    tensorrt: StandIn, bundle_copy: Bundle, refused: str, message: str
) -> None:
    tensorrt.refuse(refused)
    tensorrt.parser_error = "No importer registered for op: NonZero" if refused == "parse" else ""
    with pytest.raises(EngineError, match=message):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")
    assert not (bundle_copy.path / "engines").exists()


def test_an_engine_that_was_built_runs(tensorrt: StandIn, bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes that the builder sets are those that the engine expects."""
    gpu = FakeGpu()
    tensorrt.reset(gpu)
    tensorrt.layers = HALF
    monkeypatch.setattr(tensorrt_api, "load_cuda", lambda *_: gpu)
    monkeypatch.setattr(tensorrt_api, "native_handle", int)
    monkeypatch.setattr(tensorrt_engine, "gpu_of_this_machine", build.gpu_of_this_machine)
    bundle, _, _ = add_engine(bundle_copy, builder="tensorrt", precision="fp16", options=BuildOptions(opt_batch=(1, 4)))
    with open_engine(bundle, backend="tensorrt", precision="fp16") as engine:
        for batch in (1, 3):
            found = engine.infer(np.full((batch, 3, 64, 64), 51, np.uint8))
            assert found.scores[:, 0] == pytest.approx(0.2)
        assert [context.profile for context in tensorrt.contexts] == [0, 1]


def test_print_commands_prints_trtexec_and_polygraphy_commands(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--print-commands", "--precision", "fp16", "--opt-batch", "2", "--optimization-level", "4"]
    assert main(["engine", str(bundle_copy.path), *words]) == 0
    trtexec, polygraphy = capsys.readouterr().out.strip().split("\n\n")
    assert trtexec.startswith(f"trtexec --onnx={bundle_copy.path / 'model.fp16.onnx'} --saveEngine=")
    for part in ("--minShapes=tiles:1x3x64x64", "--optShapes=tiles:2x3x64x64", "--maxShapes=tiles:4x3x64x64",
                 "--noTF32", "--builderOptimizationLevel=4", "--memPoolSize=workspace:4096M"):  # fmt: skip
        assert part in trtexec.split()
    assert "--fp16" not in trtexec
    assert polygraphy.startswith("polygraphy run ")
    assert "--onnxrt --trt " in polygraphy
    assert "'tiles:[4,3,64,64]'" in polygraphy
    assert not bundle_copy.find("engine")


def test_an_opt_batch_above_the_bundles_largest_is_refused(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", str(bundle_copy.path), "--opt-batch", "1", "9"]) == 2
    message = capsys.readouterr().err
    assert "--opt-batch is above the bundle's largest batch: got 9, expected 1 to 4." in message
    assert "export.max_batch=9" in message
    assert not bundle_copy.find("engine")


def test_several_opt_batches_are_profiles_up_to_the_largest_batch(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BuildOptions(opt_batch=(4, 1, 2))
    _, _, metadata = add_engine(bundle_copy, builder="tensorrt_rtx", precision="fp16", options=options)
    assert [(one.min, one.opt, one.max) for one in metadata.batch_profiles] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert (metadata.batch.opt, metadata.batch.max) == (4, 4)
    assert (
        main(["engine", str(bundle_copy.path), "--print-commands", "--precision", "fp16", "--opt-batch", "1", "3"]) == 0
    )
    trtexec, polygraphy = capsys.readouterr().out.strip().split("\n\n")
    shapes = ["--profile=0", *(f"--{kind}Shapes=tiles:1x3x64x64" for kind in ("min", "opt", "max"))]
    shapes += ["--profile=1", "--minShapes=tiles:1x3x64x64", "--optShapes=tiles:3x3x64x64"]
    assert " ".join([*shapes, "--maxShapes=tiles:4x3x64x64"]) in trtexec
    assert polygraphy.count("--trt-max-shapes") == 2

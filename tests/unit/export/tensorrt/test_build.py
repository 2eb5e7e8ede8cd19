"""Engine builds by TensorRT-RTX, which needs no GPU, and by a fake TensorRT that wraps it."""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from deploy.cli.main import main
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.engine_metadata import (
    BuildOptions,
    DeliveredPrecision,
    engine_metadata_path,
    read_engine_metadata,
    require_delivered,
)
from export.tensorrt import build, tensorrt_api
from export.tensorrt.build import add_engine, build_engine
from export.tensorrt.builder_config import configure, use_timing_cache
from export.tensorrt.tensorrt_api import Gpu
from ifkd.core.errors import BundleError, EngineError, MissingExtraError
from ifkd.core.files import sha256_of

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

STRONGLY_TYPED = int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


class FakeTensorRt:
    """TensorRT-RTX under TensorRT's name and version; it records the flags of networks."""

    __name__ = "tensorrt"

    def __init__(self, version: str) -> None:
        self.__version__ = version
        self.network_flags: list[int] = []

    def Builder(self, log: Any) -> "RecordingBuilder":  # noqa: N802
        return RecordingBuilder(rtx.Builder(log), self.network_flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(rtx, name)


class Anything:
    """A builder's configuration that accepts every call."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


class RecordingBuilder:
    def __init__(self, builder: Any, flags: list[int]) -> None:
        self._builder, self._flags = builder, flags

    def create_network(self, flags: int) -> Any:
        self._flags.append(flags)
        return self._builder.create_network(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(version: str) -> FakeTensorRt:
        fake = FakeTensorRt(version)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        monkeypatch.setattr(build, "gpu_of_this_machine", lambda: Gpu("NVIDIA Test GPU 80GB", "9.0", "13.0"))
        # Loading an engine needs a driver.
        monkeypatch.setattr(build, "_layer_formats", lambda *_: {"Half": 3})
        return fake

    return install


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


@pytest.mark.parametrize(("version", "flags"), [("10.13.3", 1 << STRONGLY_TYPED), ("11.4.0", 0)])
def test_networks_are_strongly_typed_in_every_version_of_tensorrt(
    tensorrt: Any, bundle_copy: Bundle, version: str, flags: int
) -> None:
    fake = tensorrt(version)
    _, name, metadata = add_engine(bundle_copy, builder="tensorrt", precision="fp16", options=BuildOptions(tf32=True))
    assert fake.network_flags == [flags]
    assert name == f"engines/nvidia-test-gpu-80gb-tensorrt{version}-fp16-tf32.engine"
    assert (metadata.device, metadata.compute_capability, metadata.tf32) == ("NVIDIA Test GPU 80GB", "9.0", True)
    assert metadata.delivered_precision.layer_formats == {"Half": 3}


def test_an_old_tensorrt_is_refused(tensorrt: Any, bundle_copy: Bundle) -> None:
    tensorrt("10.0.1")
    with pytest.raises(EngineError, match=r"too old: got 10\.0\.1, expected at least 10\.1"):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")


def test_the_timing_cache_is_reused_by_the_next_build(tmp_path: Path) -> None:
    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content

    class Config:
        cache: Cache

        def create_timing_cache(self, content: bytes) -> Cache | None:
            return None if content == b"damaged" else Cache(content)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.cache = cache
            return cache.content != b"of another GPU"

        def get_timing_cache(self) -> Cache:
            return self.cache

    path = tmp_path / "timings"
    config = Config()
    with use_timing_cache(config, path):
        assert config.cache.content == b""
        config.cache = Cache(b"learned")
    assert path.read_bytes() == b"learned"
    with use_timing_cache(config, path):
        assert config.cache.content == b"learned"
    for useless in (b"of another GPU", b"damaged"):
        path.write_bytes(useless)
        with use_timing_cache(config, path):
            assert config.cache.content == b""


def test_layer_formats_are_read_from_the_inspectors_of_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        {"Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Half"}]},
        {"Outputs": [{"Format": "NHWC8", "Datatype": "Half"}], "Weights": {"Type": "Int8", "Count": 9}},
        {"Inputs": [{"Datatype": "Int8"}], "Outputs": [{"Datatype": "Float"}, {"Datatype": "Float"}]},
        {"Inputs": [], "Outputs": None},
        "a layer without details",
    ]

    class Found:
        def __getattr__(self, name: str) -> Any:
            text = json.dumps({"Layers": layers})
            return (lambda *_: text) if name == "get_engine_information" else (lambda *_: self)

    class Module:
        __version__ = "11.4.0"
        ILogger = rtx.ILogger
        LayerInformationFormat = rtx.LayerInformationFormat

        @staticmethod
        def Runtime(_log: Any) -> Found:  # noqa: N802
            return Found()

    assert build._layer_formats(Module, tensorrt_api.MessageLog(), b"plan") == {"Float": 1, "Half": 2, "Int8": 2}


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


def test_a_missing_precision_and_a_changed_file_are_refused(bundle_copy: Bundle) -> None:
    with pytest.raises(BundleError, match="has no ONNX file in int8: expected one of fp16, fp32"):
        add_engine(bundle_copy, builder="tensorrt_rtx", precision="int8")
    with (bundle_copy.path / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="differs from the manifest"):
        add_engine(bundle_copy, builder="tensorrt_rtx", precision="fp32")


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


def test_all_options_are_set_on_the_builder(bundle_copy: Bundle, tensorrt: Any) -> None:
    options_set: dict[str, Any] = {}

    class Config:
        def set_memory_pool_limit(self, _pool: Any, size: int) -> None:
            options_set["workspace"] = size

        def clear_flag(self, flag: Any) -> None:
            options_set["cleared"] = flag

        def set_flag(self, flag: Any) -> None:
            options_set["set"] = flag

        def __setattr__(self, name: str, value: Any) -> None:
            options_set[name] = value

    options = BuildOptions(optimization_level=5, workspace_mib=64, compatibility="ampere_plus")
    configure(tensorrt("11.4.0"), Config(), "tensorrt", options)
    assert (options_set["workspace"], options_set["cleared"]) == (64 << 20, rtx.BuilderFlag.TF32)
    assert options_set["set"] == rtx.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert options_set["builder_optimization_level"] == 5
    assert options_set["hardware_compatibility_level"] == rtx.HardwareCompatibilityLevel.AMPERE_PLUS


@pytest.mark.parametrize("version", ["10.1.0", "10.8.0"])
def test_a_compatibility_that_this_tensorrt_lacks_is_refused(tensorrt: Any, bundle_copy: Bundle, version: str) -> None:
    fake = tensorrt(version)
    fake.HardwareCompatibilityLevel = types.SimpleNamespace(NONE=0, AMPERE_PLUS=1)
    options = BuildOptions(compatibility="same_compute_capability")
    message = rf"no hardware compatibility same_compute_capability: got TensorRT {version}, expected 10\.9 or later"
    with pytest.raises(EngineError, match=message):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16", options=options)
    assert not (bundle_copy.path / "engines").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("set_shape", r"refuses the batch or tile sizes of model\.fp16\.onnx \(Shape provided for min is inconsistent"),
        ("add_optimization_profile", "refuses an optimization profile: got batches of 1 to 4"),
    ],
)
def test_a_refused_profile_is_an_engine_error(
    tensorrt: Any, bundle_copy: Bundle, part: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_shape(*_: Any) -> None:
        if part == "set_shape":
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")  # as the bindings do

    profile, config = types.SimpleNamespace(set_shape=set_shape), Anything()
    config.add_optimization_profile = lambda _: -1
    monkeypatch.setattr(RecordingBuilder, "create_optimization_profile", lambda _: profile, raising=False)
    monkeypatch.setattr(RecordingBuilder, "create_builder_config", lambda _: config, raising=False)
    tensorrt("11.4.0")
    with pytest.raises(EngineError, match=message):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")
    assert not (bundle_copy.path / "engines").exists()


def test_a_builder_that_cannot_start_is_an_engine_error(
    tensorrt: Any, bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")  # as the bindings do

    tensorrt("11.4.0")
    monkeypatch.setattr(FakeTensorRt, "Builder", refuse)
    with pytest.raises(EngineError, match=r"tensorrt 11\.4\.0 cannot start \(pybind11::init\(\)"):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")


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


def test_several_opt_batches_are_profiles_up_to_the_largest_batch(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BuildOptions(opt_batch=(9, 1, 2))
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

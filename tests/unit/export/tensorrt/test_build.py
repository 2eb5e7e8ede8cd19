"""Engines: built for real by TensorRT-RTX, which needs no GPU; TensorRT's ways are tried on a stand-in of its name."""

import importlib
import json
import sys
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
from export.tensorrt.tensorrt_api import Gpu
from ifkd.core.errors import BundleError, EngineError, MissingExtraError
from ifkd.core.files import sha256_of

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

STRONGLY_TYPED = int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


class StandIn:
    """TensorRT-RTX under TensorRT's name and version, noting how networks and timing caches are made."""

    __name__ = "tensorrt"

    def __init__(self, version: str) -> None:
        self.__version__ = version
        self.network_flags: list[int] = []

    def Builder(self, log: Any) -> "NotingBuilder":  # noqa: N802
        return NotingBuilder(rtx.Builder(log), self.network_flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(rtx, name)


class NotingBuilder:
    def __init__(self, builder: Any, flags: list[int]) -> None:
        self._builder, self._flags = builder, flags

    def create_network(self, flags: int) -> Any:
        self._flags.append(flags)
        return self._builder.create_network(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(version: str) -> StandIn:
        stand_in = StandIn(version)
        monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
        monkeypatch.setattr(build, "gpu_of_this_machine", lambda: Gpu("NVIDIA Test GPU 80GB", "9.0", "13.0"))
        # Reading an engine needs a driver, which the stand-in has not.
        monkeypatch.setattr(build, "_layer_formats", lambda *_: {"Half": 3})
        return stand_in

    return install


def test_both_precisions_build_and_the_sidecars_tell_what_they_are(bundle_copy: Bundle) -> None:
    bundle, metadata = bundle_copy, {}
    for precision in ("fp32", "fp16"):
        bundle, name, metadata[precision] = add_engine(bundle, builder="tensorrt_rtx", precision=precision)
        assert name == f"engines/portable-tensorrt-rtx{rtx.__version__}-{precision}.engine"
        side = metadata[precision]
        assert read_engine_metadata(engine_metadata_path(bundle.path / name)) == side
        assert side.onnx_sha256 == bundle.manifest.files[side.onnx].sha256
        assert side.engine_sha256 == sha256_of(bundle.path / name) == bundle.manifest.files[name].sha256
        assert (side.batch.min, side.batch.opt, side.batch.max, side.tile_px) == (1, 4, 4, (64, 64))
        assert (side.device, side.tf32, side.requested_precision) == ("portable", False, precision)
    assert metadata["fp16"].engine_bytes < 0.6 * metadata["fp32"].engine_bytes
    assert set(metadata["fp16"].delivered_precision.weight_types) == {"FLOAT16"}
    assert 0.9 < metadata["fp16"].delivered_precision.size_ratio < 1.5
    again = open_bundle(bundle.path)
    again.verify()
    assert len(again.find("engine")) == len(again.find("engine-metadata")) == 2


def test_a_precision_the_file_has_not_is_refused(whole_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.onnx is not fp16 throughout"):
        build_engine(
            whole_bundle / "model.onnx",
            builder="tensorrt_rtx",
            precision="fp16",
            max_batch=2,
            out=tmp_path / "a.engine",
        )
    assert list(tmp_path.iterdir()) == []


def test_the_builders_own_reason_is_in_the_error_and_nothing_is_left(tmp_path: Path) -> None:
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
def test_networks_are_strongly_typed_in_every_tensorrt(
    tensorrt: Any, bundle_copy: Bundle, version: str, flags: int
) -> None:
    stand_in = tensorrt(version)
    _, name, side = add_engine(bundle_copy, builder="tensorrt", precision="fp16", options=BuildOptions(tf32=True))
    assert stand_in.network_flags == [flags]
    assert name == f"engines/nvidia-test-gpu-80gb-tensorrt{version}-fp16-tf32.engine"
    assert (side.device, side.compute_capability, side.tf32) == ("NVIDIA Test GPU 80GB", "9.0", True)
    assert side.delivered_precision.layers == {"Half": 3}


def test_an_old_tensorrt_is_refused(tensorrt: Any, bundle_copy: Bundle) -> None:
    tensorrt("10.0.1")
    with pytest.raises(EngineError, match=r"too old: got 10\.0\.1, expected at least 10\.1"):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")


def test_timings_are_kept_and_given_to_the_next_build(tmp_path: Path) -> None:
    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content

    class Config:
        cache: Cache

        def create_timing_cache(self, content: bytes) -> Cache:
            return Cache(content)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.cache = cache
            return cache.content != b"of another GPU"

        def get_timing_cache(self) -> Cache:
            return self.cache

    path = tmp_path / "timings"
    config = Config()
    with build.use_timing_cache(config, path):
        assert config.cache.content == b""
        config.cache = Cache(b"learned")
    assert path.read_bytes() == b"learned"
    with build.use_timing_cache(config, path):
        assert config.cache.content == b"learned"
    path.write_bytes(b"of another GPU")
    with build.use_timing_cache(config, path):
        assert config.cache.content == b""


def test_layer_formats_are_read_from_both_inspectors(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        {"Outputs": [{"Format/Datatype": "Half"}]},
        {"Outputs": [{"Format": "NHWC8", "Datatype": "Half"}]},
        {"Outputs": [{"Datatype": "Float"}]},
        "a layer without details",
    ]

    class Found:
        def __getattr__(self, name: str) -> Any:
            text = json.dumps({"Layers": layers})
            return (lambda *_: text) if name == "get_engine_information" else (lambda *_: self)

    class Module:
        ILogger = rtx.ILogger
        LayerInformationFormat = rtx.LayerInformationFormat

        @staticmethod
        def Runtime(_log: Any) -> Found:  # noqa: N802
            return Found()

    assert build._layer_formats(Module, tensorrt_api.MessageLog(), b"plan") == {"Float": 1, "Half": 2}


def test_tensorrt_absent_says_what_to_install(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ifkd\[tensorrt\]'"):
        add_engine(bundle_copy, builder="tensorrt", precision="fp16")


def test_broken_libraries_are_an_error_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"libraries cannot be loaded \(libnvinfer"):
        tensorrt_api.load_tensorrt("tensorrt")


def test_a_precision_the_bundle_lacks_and_a_changed_file_are_refused(bundle_copy: Bundle) -> None:
    with pytest.raises(BundleError, match="has no ONNX file in int8: expected one of fp16, fp32"):
        add_engine(bundle_copy, builder="tensorrt_rtx", precision="int8")
    with (bundle_copy.path / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="is not the file the manifest describes"):
        add_engine(bundle_copy, builder="tensorrt_rtx", precision="fp32")


def test_a_damaged_sidecar_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"device": 1}')
    with pytest.raises(BundleError, match="not an engine's sidecar"):
        read_engine_metadata(tmp_path / "a.json")


def test_the_verb_builds_what_the_bundle_has_and_says_where(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", str(bundle_copy.path), "--precision", "fp16", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (name,) = answer["engines"]
    assert (bundle_copy.path / name).stat().st_size == answer["engines"][name]["engine_bytes"]
    assert main(["engine", str(bundle_copy.path), "--precision", "fp16"]) == 0
    assert str(bundle_copy.path / name) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "ratio", "layers", "message"),
    [
        ("fp16", 2.0, None, r"weights were widened: got 2 times"),
        ("int8", 4.0, None, r"weights were widened: got 4 times"),
        ("fp16", 1.0, {"Float": 9}, r"no layer of it computes so: got 9 Float, expected Half or FP16"),
        ("int8", 1.0, {"Half": 3, "Float": 9}, "no layer of it computes so"),
    ],
)
def test_an_engine_that_is_less_than_was_asked_is_refused(
    precision: Any, ratio: float, layers: dict[str, int] | None, message: str
) -> None:
    delivered = DeliveredPrecision(
        weight_types={}, size_ratio=ratio + 1, size_ratio_without_kernels=ratio, layers=layers
    )
    with pytest.raises(EngineError, match=message):
        require_delivered(delivered, precision, "a.engine")
    require_delivered(DeliveredPrecision(
            weight_types={}, size_ratio=1.9, size_ratio_without_kernels=1.1, layers={"Half": 1, "Int8": 2}
        ),
                      precision, "a.engine")  # fmt: skip


def test_the_builder_is_told_every_option(bundle_copy: Bundle, tensorrt: Any) -> None:
    told: dict[str, Any] = {}

    class Config:
        def set_memory_pool_limit(self, _pool: Any, size: int) -> None:
            told["workspace"] = size

        def clear_flag(self, flag: Any) -> None:
            told["cleared"] = flag

        def set_flag(self, flag: Any) -> None:
            told["set"] = flag

        def __setattr__(self, name: str, value: Any) -> None:
            told[name] = value

    options = BuildOptions(level=5, workspace_mib=64, compatibility="ampere_plus")
    build._configure(tensorrt("11.4.0"), Config(), "tensorrt", options)
    assert (told["workspace"], told["cleared"]) == (64 << 20, rtx.BuilderFlag.TF32)
    assert told["set"] == rtx.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert told["builder_optimization_level"] == 5
    assert told["hardware_compatibility_level"] == rtx.HardwareCompatibilityLevel.AMPERE_PLUS


def test_a_build_is_explained_as_the_commands_of_nvidias_programs(
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


def test_several_batches_to_tune_for_are_profiles_that_reach_the_largest(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BuildOptions(opt_batch=(9, 1, 2))
    _, _, side = add_engine(bundle_copy, builder="tensorrt_rtx", precision="fp16", options=options)
    assert [(one.min, one.opt, one.max) for one in side.profiles] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert (side.batch.opt, side.batch.max) == (4, 4)
    assert (
        main(["engine", str(bundle_copy.path), "--print-commands", "--precision", "fp16", "--opt-batch", "1", "3"]) == 0
    )
    trtexec, polygraphy = capsys.readouterr().out.strip().split("\n\n")
    shapes = ["--profile=0", *(f"--{kind}Shapes=tiles:1x3x64x64" for kind in ("min", "opt", "max"))]
    shapes += ["--profile=1", "--minShapes=tiles:1x3x64x64", "--optShapes=tiles:3x3x64x64"]
    assert " ".join([*shapes, "--maxShapes=tiles:4x3x64x64"]) in trtexec
    assert polygraphy.count("--trt-max-shapes") == 2


def test_weights_that_are_really_wider_are_seen_through_the_kernels(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The engine of the FP32 file, as if it had been asked for and counted as FP16: all its weights are too wide.
    half = build.require_precision(whole_bundle / "model.fp16.onnx", "fp16")
    monkeypatch.setattr(build, "require_precision", lambda *_: half)
    with pytest.raises(EngineError, match=r"weights were widened: got 1\.\d+ times .*kernels left out"):
        build_engine(
            whole_bundle / "model.onnx",
            builder="tensorrt_rtx",
            precision="fp16",
            max_batch=2,
            out=tmp_path / "a.engine",
        )
    assert list(tmp_path.iterdir()) == []

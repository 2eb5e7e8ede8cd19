"""ONNX Runtime's GPU providers without a GPU: options, memory, CUDA graphs, and errors with reasons."""

import ctypes
import itertools
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fakes.fake_cuda import FakeGpu

import deploy.engines.onnxruntime_engine as backend
from deploy.engines import open_engine
from deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from export.bundle.bundle import Bundle, open_bundle
from export.tensorrt import tensorrt_api
from ifkd.core.errors import EngineError, MissingExtraError

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


class RecordingGpu(FakeGpu):
    """A fake GPU that is not called while a graph is recorded, as CUDA may fail then."""

    def __init__(self, recording: Any) -> None:
        super().__init__()
        self.recording_lock = recording

    def __getattr__(self, name: str) -> Any:
        assert name == "recording_lock" or not self.recording_lock.locked()
        return super().__getattr__(name)


class GpuRuntime(types.ModuleType):
    """The real ONNX Runtime, whose CPU plays the GPU: it notes what it is asked for, and enforces the rules of CUDA.

    A graph is recorded in its first run, by the thread that replays it, with the memory of that run, and while no other
    thread uses the GPU. `during_run` is called in each run. Copies are those of `FakeGpu`, which runs them late.
    """

    def __init__(
        self, folder: Path, *, starts: bool = True, linked: bytes | None = b"libnvinfer.so.10", refuses: str = ""
    ) -> None:
        super().__init__("onnxruntime")
        self.__file__ = str(folder / "__init__.py")
        (folder / "capi").mkdir()
        if linked is not None:
            (folder / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x7fELF\0" + linked + b"\0")
        self.starts = starts
        self.refuses = refuses
        """`session` or `run`: where CUDA graphs fail."""
        self.providers: list[tuple[str, dict[str, str]]] = []
        self.options: Any = None
        self.devices: list[str] = []
        self.runs: list[str | None] = []
        """Graph of each run."""
        self.released: list[int] = []
        self.during_run: Callable[[int], None] = lambda _: None
        recording = threading.Lock()
        outer = self
        self.gpu = RecordingGpu(recording)

        class OrtValue(onnxruntime.OrtValue):
            @classmethod
            def ortvalue_from_shape_and_type(cls, shape: Any, element_type: Any, device: str, number: int) -> Any:  # type: ignore[override]
                assert number == 0
                assert not recording.locked()
                outer.devices.append(device)
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cpu", 0)
                return cls(value._ortvalue)

        class Session(onnxruntime.InferenceSession):
            graphs: dict[str, tuple[Any, int]]

            def get_providers(self) -> Any:
                return [name for name, _ in outer.providers] if outer.starts else [CPU]

            def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
                graphs = dict(outer.providers).get(CUDA, {}).get("enable_cuda_graph") == "1"
                assert graphs == (run_options is not None)
                graph = run_options.get_run_config_entry("gpu_graph_id") if graphs else None
                outer.runs.append(graph)
                outer.during_run(len(outer.runs) - 1)
                if graph is not None and graph not in self.graphs:
                    if outer.refuses == "run":
                        raise RuntimeError("cudaErrorStreamCaptureUnsupported")
                    with recording:
                        time.sleep(0.02)  # in which a copy by another thread would fail
                        super().run_with_iobinding(iobinding)
                    self.graphs[graph] = iobinding, threading.get_ident()
                    return
                if graph is not None:
                    assert self.graphs[graph] == (iobinding, threading.get_ident())
                super().run_with_iobinding(iobinding)

            def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
                assert self.graphs.pop(str(graph_annotation_id))[1] == threading.get_ident()
                outer.released.append(graph_annotation_id)

        self.OrtValue, self.Session = OrtValue, Session

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        sys.stdout.write("Failed to load libcublasLt.so.13\n")

    def InferenceSession(  # noqa: N802
        self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int
    ) -> Any:
        assert enable_fallback == 0, "it would print errors and run on the CPU"
        self.providers, self.options = providers, options
        if self.refuses == "session" and "enable_cuda_graph" in dict(providers).get(CUDA, {}):
            raise RuntimeError("the model has control flow nodes")
        session = self.Session(path, options, providers=[CPU])
        session.graphs = {}
        return session


def installed(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    tensorrt: str | None = "10.14.1",
    on_system: str | None = None,
    **values: Any,
) -> GpuRuntime:
    """Install a runtime, and TensorRT as a module that loads its library, or as a library of the system."""
    runtime = GpuRuntime(folder, **values)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(tensorrt_api, "load_cuda", lambda *_: runtime.gpu)
    monkeypatch.setattr(tensorrt_api, "native_handle", int)
    loaded = {on_system}
    module = folder / "modules" / "tensorrt.py"
    module.parent.mkdir()
    if tensorrt is not None:
        loading = f"ctypes.CDLL('/wheel/libnvinfer.so.{tensorrt.split('.')[0]}')"
        module.write_text(f"import ctypes\n__version__ = {tensorrt!r}\n{loading}\n")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(module.parent))

    def load(name: str) -> None:
        if name.startswith("/wheel/"):
            loaded.add(Path(name).name)
        if Path(name).name not in loaded:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    return runtime


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 64, 64), np.uint8)


@pytest.mark.parametrize(("name", "first"), [("onnxruntime-cuda", CUDA), ("onnxruntime-tensorrt", TENSORRT)])
def test_a_gpus_provider_uses_memory_of_its_device_and_reports_its_timing(
    name: Any,
    first: str,
    whole_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, tiles = open_bundle(whole_bundle), noise(3)
    with open_engine(bundle, threads=1) as engine:
        expected = engine.infer(tiles)
    runtime = installed(monkeypatch, tmp_path)
    with OnnxRuntimeEngine(bundle, backend=name, threads=1, graphs=False) as engine:
        assert (engine.info.backend, engine.info.device) == (name, "NVIDIA H200")
        assert engine.last_timing is None
        for _ in range(2):
            np.testing.assert_array_equal(engine.infer(tiles).scores, expected.scores)
        assert engine.last_timing is not None
        assert engine.last_timing.upload_ms == 1.0  # the fake counts copies
        assert engine.last_timing.compute_ms > engine.last_timing.download_ms > 0
    assert capsys.readouterr().out == "", "the standard output is for results"
    assert runtime.devices == ["cuda"] * 4, "one set of memory for a batch size, made once"
    assert runtime.gpu.calls.count("cudaMallocHost") == 4, "pinned memory for the tiles and each output, made once"
    assert next(one for one in runtime.gpu.calls if "Get" not in one) == "cudaSetDeviceFlags"
    assert (runtime.gpu.memory, runtime.gpu.alive) == ({}, set())
    assert next(name for name, _ in runtime.providers) == first
    assert runtime.providers[-1] == (CPU, {})
    options = dict(runtime.providers)
    assert options[CUDA]["use_tf32"] == "0", "FP32 is not rounded to TF32"
    assert (runtime.options.intra_op_num_threads, runtime.options.inter_op_num_threads) == (1, 1)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_batch_is_uploaded_while_the_gpu_computes_the_one_before_it(
    name: Any, whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, batches = open_bundle(whole_bundle), [noise(2) ^ np.uint8(37 * number) for number in range(6)]
    with open_engine(bundle, threads=1) as engine:
        expected = [engine.infer(tiles) for tiles in batches]
    runtime = installed(monkeypatch, tmp_path)
    uploaded = threading.Condition()
    with open_engine(bundle, backend=name, threads=1) as engine:
        before = len(runtime.runs)

        def wait_for_next_upload(run: int) -> None:
            # The first run of a graph records it, and nothing may be uploaded then.
            if run - before in range(2, len(batches) - 1):
                with uploaded:
                    assert uploaded.wait_for(lambda: uploads > run + 1, timeout=20), f"run {run} was alone"

        def copy(target: int, source: int, size: int, kind: Any, stream: int) -> tuple[()]:
            nonlocal uploads
            with uploaded:
                uploads += kind == runtime.gpu.cudaMemcpyKind.cudaMemcpyHostToDevice
                uploaded.notify_all()
            return original(target, source, size, kind, stream)

        uploads, original = before, runtime.gpu._cudaMemcpyAsync
        monkeypatch.setattr(runtime.gpu, "_cudaMemcpyAsync", copy)
        runtime.during_run = wait_for_next_upload
        found = list(engine.infer_each(iter(batches)))
    for one, other in zip(found, expected, strict=True):
        for field in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    graphs = runtime.runs[before:]
    assert graphs == (["2", "3"] * 3 if name == "onnxruntime-cuda" else [None] * 6)


def test_results_that_are_not_fetched_do_not_share_memory_with_later_ones(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path)
    bundle, tiles = open_bundle(whole_bundle), noise(3)
    with open_engine(bundle, backend="onnxruntime-cuda", threads=1) as engine:
        expected = [engine.infer(one[None]) for one in tiles]
        outputs = engine.infer_each(tiles[number : number + 1] for number in (0, 1, 2))
        first = next(outputs)
        between = engine.infer(tiles[2:])  # two batches are in flight, and one of them was fetched
        found = [first, *outputs]
        stopped = engine.infer_each([tiles[:1], tiles[1:2]])
        next(stopped)
        stopped.close()
        np.testing.assert_array_equal(engine.infer(tiles[:1]).scores, expected[0].scores)
    np.testing.assert_array_equal(between.scores, expected[2].scores)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("refuses", ["session", "run"])
def test_without_cuda_graphs_the_reason_is_logged_and_the_results_are_the_same(
    refuses: str,
    whole_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle, tiles = open_bundle(whole_bundle), noise(2)
    with open_engine(bundle, threads=1) as engine:
        expected = engine.infer(tiles)
    runtime = installed(monkeypatch, tmp_path, refuses=refuses)
    with open_engine(bundle, backend="onnxruntime-cuda", threads=1) as engine:
        np.testing.assert_array_equal(engine.infer(tiles).scores, expected.scores)
    assert "enable_cuda_graph" not in dict(runtime.providers)[CUDA]
    reason = "control flow" if refuses == "session" else "cudaErrorStreamCaptureUnsupported"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "model.onnx runs without CUDA graphs" in caplog.text
    assert reason in caplog.text


def test_memory_and_graphs_of_rare_shapes_are_dropped(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "MAX_SHAPES", 2)
    runtime = installed(monkeypatch, tmp_path)
    with open_engine(open_bundle(whole_bundle), backend="onnxruntime-cuda", threads=1) as engine:
        for count in (2, 1, 3, 1, 4):  # after the tile of the start, whose graph is the first
            engine.infer(noise(count))
        assert runtime.released == [2, 3]
        assert engine.infer(noise(2)).boxes.shape[0] == 2
    assert runtime.runs == ["1", "2", "1", "3", "1", "4", "5"]


def test_tiles_of_several_sizes_have_no_graphs_and_bounded_memory(
    free_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = installed(monkeypatch, tmp_path)
    with open_engine(open_bundle(free_bundle), backend="onnxruntime-cuda", threads=1) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        for count, (height, width) in enumerate(itertools.product((32, 64, 96, 128), repeat=2), start=1):
            engine.infer(np.zeros((1, 3, height, width), np.uint8))
            assert len(engine._bindings) == min(count, backend.MAX_SHAPES)
    assert set(runtime.runs) == {None}


@pytest.mark.parametrize(("precision", "nhwc"), [("fp32", "0"), ("fp16", "1")])
def test_cuda_chooses_convolutions_without_trying_all(precision: Any, nhwc: str, whole_bundle: Path) -> None:
    manifest = open_bundle(whole_bundle).manifest
    options = dict(backend.provider_options(CUDA, manifest, precision=precision))[CUDA]
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["prefer_nhwc"] == nhwc


def test_its_tensorrt_takes_types_from_the_file_and_every_batch_up_to_the_largest(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "cache"))
    runtime, bundle = installed(monkeypatch, tmp_path), open_bundle(whole_bundle)
    with open_engine(bundle, backend="onnxruntime-tensorrt", threads=1):
        options = dict(runtime.providers)[TENSORRT]
    assert options["trt_profile_min_shapes"] == "tiles:1x3x64x64"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "tiles:4x3x64x64"
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("0", "0")
    digest = bundle.manifest.files["model.onnx"].sha256
    folder = tmp_path / "cache" / "onnxruntime-tensorrt" / f"{digest[:16]}-nvidia-h200"
    assert folder.is_dir()
    for kind in ("engine", "timing"):
        assert (options[f"trt_{kind}_cache_enable"], options[f"trt_{kind}_cache_path"]) == ("1", str(folder))


def test_without_a_cache_its_tensorrt_works_with_a_warning(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "file"))
    runtime = installed(monkeypatch, tmp_path)
    with open_engine(open_bundle(whole_bundle), backend="onnxruntime-tensorrt", threads=1):
        assert not any("cache" in key for key in dict(runtime.providers)[TENSORRT])
    assert "builds the engine of model.onnx again in each process" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tensorrt": "11.4.0"}, r"got TensorRT 11\.4\.0, expected TensorRT 10, which it is linked with"),
        ({"tensorrt": None}, r"got Building .* needs the package tensorrt.*, expected TensorRT 10, which it is linked"),
        ({"linked": None}, r"got TensorRT 10\.14\.1, expected a provider linked with TensorRT"),
        ({"starts": False}, rf"could not start {TENSORRT}: got {CPU} instead"),
    ],
)
def test_its_tensorrt_is_refused_with_the_reason_where_versions_do_not_agree(
    values: dict[str, Any],
    message: str,
    whole_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = installed(monkeypatch, tmp_path, **values)
    with pytest.raises(EngineError, match=message):
        open_engine(open_bundle(whole_bundle), backend="onnxruntime-tensorrt")
    assert bool(runtime.providers) == ("starts" in values), "nothing is loaded by a provider that cannot work"
    assert (runtime.gpu.memory, runtime.gpu.alive) == ({}, set())


@pytest.mark.parametrize("values", [{"tensorrt": "10.14.1"}, {"tensorrt": None, "on_system": "libnvinfer.so.10"}])
def test_its_tensorrt_is_found_by_its_library_whatever_package_installed_it(
    values: dict[str, Any], whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path, **values)
    with open_engine(open_bundle(whole_bundle), backend="onnxruntime-tensorrt", threads=1) as engine:
        assert engine.info.backend == "onnxruntime-tensorrt"


def test_a_stored_engine_that_cannot_be_loaded_is_built_again(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A killed process may leave a part of an engine, which TensorRT's provider refuses and keeps."""
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "cache"))
    runtime = installed(monkeypatch, tmp_path)
    bundle = open_bundle(whole_bundle)
    open_engine(bundle, backend="onnxruntime-tensorrt", threads=1).close()
    (folder,) = (tmp_path / "cache" / "onnxruntime-tensorrt").iterdir()
    (folder / "part.engine").write_bytes(b"TRT")
    opened = runtime.InferenceSession

    def refuse_part(*arguments: Any, **options: Any) -> Any:
        if any(folder.iterdir()):
            raise RuntimeError("could not deserialize engine from cache")
        return opened(*arguments, **options)

    monkeypatch.setattr(runtime, "InferenceSession", refuse_part)
    open_engine(bundle, backend="onnxruntime-tensorrt", threads=1).close()
    assert "are built again" in caplog.text

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no GPU memory")

    monkeypatch.setattr(runtime, "InferenceSession", refuse)
    with pytest.raises(EngineError, match="no GPU memory"):
        open_engine(bundle, backend="onnxruntime-tensorrt", threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_run_that_fails_is_an_engine_error(
    name: Any, whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = installed(monkeypatch, tmp_path)
    with open_engine(open_bundle(whole_bundle), backend=name, threads=1) as engine:
        expected = engine.infer(noise(2))

        def fail(_: int) -> None:
            raise RuntimeError("CUDA failure 2: out of memory")

        runtime.during_run = fail
        with pytest.raises(EngineError, match=r"failed to run model\.onnx on .*out of memory.* smaller --batch"):
            engine.infer(noise(2))
        with pytest.raises(EngineError, match="out of memory"):
            list(engine.infer_each([noise(3), noise(3), noise(3)]))
        runtime.during_run = lambda _: None
        np.testing.assert_array_equal(engine.infer(noise(2)).scores, expected.scores)
        assert len(engine.infer(noise(3)).scores) == 3


def test_the_cpus_package_has_no_such_provider_and_says_what_to_install(bundle_copy: Bundle) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(EngineError, match=rf"has no {CUDA}: got .*{CPU}.*pip install 'ifkd\[gpu\]'"):
        open_engine(bundle_copy, backend="onnxruntime-cuda")


def test_without_any_onnxruntime_the_extra_is_that_of_the_backend(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ifkd\[gpu\]'"):
        open_engine(bundle_copy, backend="onnxruntime-cuda")


def test_without_cuda_bindings_the_extras_are_those_of_onnxruntime(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = tensorrt_api.load_cuda
    installed(monkeypatch, tmp_path)
    monkeypatch.setattr(tensorrt_api, "load_cuda", load)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(
        MissingExtraError, match=r"backend onnxruntime-cuda needs .*cuda-bindings.*'ifkd\[gpu\]'.*gpu-cu12"
    ):
        open_engine(open_bundle(whole_bundle), backend="onnxruntime-cuda")


def test_a_full_host_is_an_engine_error_and_what_was_taken_is_given_back(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = installed(monkeypatch, tmp_path)
    runtime.gpu.failing = "cudaMallocHost"
    with pytest.raises(EngineError, match=r"cudaMallocHost failed \(cudaErrorUnknown\)"):
        open_engine(open_bundle(whole_bundle), backend="onnxruntime-tensorrt").infer(noise(1))
    runtime.gpu.failing = "cudaEventCreateWithFlags"
    with pytest.raises(EngineError, match="cudaEventCreateWithFlags failed"):
        open_engine(open_bundle(whole_bundle), backend="onnxruntime-cuda")

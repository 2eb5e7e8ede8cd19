"""ONNX Runtime's GPU providers without a GPU: their options, and errors with reasons."""

import ctypes
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import deploy.engines.onnxruntime_engine as backend
from deploy.engines import open_engine
from export.bundle.bundle import Bundle, open_bundle
from ifkd.core.errors import EngineError, MissingExtraError

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


class GpuRuntime(types.ModuleType):
    """The real ONNX Runtime, whose CPU plays the GPU: it notes what it is asked for."""

    def __init__(self, folder: Path, *, starts: bool = True, linked: bytes | None = b"libnvinfer.so.10") -> None:
        super().__init__("onnxruntime")
        self.__file__ = str(folder / "__init__.py")
        (folder / "capi").mkdir()
        if linked is not None:
            (folder / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x7fELF\0" + linked + b"\0")
        self.starts = starts
        self.providers: list[tuple[str, dict[str, str]]] = []
        self.options: Any = None
        self.devices: list[str] = []
        outer = self

        class OrtValue:
            @staticmethod
            def ortvalue_from_shape_and_type(shape: list[int], kind: Any, device: str, number: int) -> Any:
                assert number == 0
                outer.devices.append(device)
                return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

        self.OrtValue = OrtValue

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        sys.stdout.write("Failed to load libcublasLt.so.13\n")

    def InferenceSession(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:  # noqa: N802
        self.providers, self.options = providers, options
        session = onnxruntime.InferenceSession(path, options, providers=[CPU])
        taken = [name for name, _ in providers] if self.starts else [CPU]
        session.get_providers = lambda: taken  # type: ignore[method-assign]
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
    with open_engine(bundle, backend=name, threads=1) as engine:
        assert (engine.info.backend, engine.info.device) == (name, "the first GPU")
        assert engine.last_timing is None
        for _ in range(2):
            np.testing.assert_array_equal(engine.infer(tiles).scores, expected.scores)
        assert engine.last_timing is not None
        assert engine.last_timing.compute_ms > max(engine.last_timing.upload_ms, engine.last_timing.download_ms) > 0
    assert capsys.readouterr().out == "", "the standard output is for results"
    assert runtime.devices == ["cuda"] * 4, "one set of memory for a batch size, made once"
    assert next(name for name, _ in runtime.providers) == first
    assert runtime.providers[-1] == (CPU, {})
    options = dict(runtime.providers)
    assert options[CUDA]["use_tf32"] == "0", "FP32 is not rounded to TF32"
    assert (runtime.options.intra_op_num_threads, runtime.options.inter_op_num_threads) == (1, 1)


def test_its_tensorrt_takes_types_from_the_file_and_every_batch_up_to_the_largest(whole_bundle: Path) -> None:
    options = dict(backend.provider_options(TENSORRT, open_bundle(whole_bundle).manifest))[TENSORRT]
    assert options["trt_profile_min_shapes"] == "tiles:1x3x64x64"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "tiles:4x3x64x64"
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("0", "0")


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


@pytest.mark.parametrize("values", [{"tensorrt": "10.14.1"}, {"tensorrt": None, "on_system": "libnvinfer.so.10"}])
def test_its_tensorrt_is_found_by_its_library_whatever_package_installed_it(
    values: dict[str, Any], whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path, **values)
    with open_engine(open_bundle(whole_bundle), backend="onnxruntime-tensorrt", threads=1) as engine:
        assert engine.info.backend == "onnxruntime-tensorrt"


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

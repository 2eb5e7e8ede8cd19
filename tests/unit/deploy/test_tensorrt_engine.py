"""The TensorRT backend where there is no GPU: what it chooses and refuses, that TensorRT has every name it uses, and
its order of work on a recording stand-in for the GPU."""

import ast
import ctypes
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy.engines.tensorrt_engine as backend
import export.engine_build
from deploy.engines import open_engine
from export.bundle import Bundle, add_file, open_bundle
from export.sidecar import BatchProfile, DeliveredPrecision, EngineSidecar, sidecar_path
from ifkd.errors import BundleError, EngineError
from ifkd.files import sha256_of, write_json

H100 = ("NVIDIA H100 80GB HBM3", "9.0")
RTX_4090 = ("NVIDIA GeForce RTX 4090", "8.9")


def with_engine(bundle: Bundle, name: str = "made", **values: Any) -> Bundle:
    """Return the bundle with an engine file of no content and a sidecar of our wording."""
    path = bundle.path / "engines" / f"{name}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"plan " + name.encode())
    facts: dict[str, Any] = {
        "device": H100[0],
        "compute_capability": H100[1],
        "builder": "tensorrt",
        "builder_version": "11.4.0",
        "onnx": "model.fp16.onnx",
        "onnx_sha256": bundle.manifest.files["model.fp16.onnx"].sha256,
        "engine_sha256": sha256_of(path),
        "engine_bytes": path.stat().st_size,
        "batch": BatchProfile(opt=4, max=4),
        "tile_px": (64, 64),
        "workspace_mib": 64,
        "tf32": False,
        "build_seconds": 1.0,
        "precision_asked": "fp16",
        "precision_delivered": DeliveredPrecision(weight_types={"FLOAT16": 1}, engine_to_weights=1.0),
    }
    write_json(sidecar_path(path), EngineSidecar(**{**facts, **values}).model_dump(mode="json"))
    bundle = add_file(bundle, f"engines/{name}.engine", kind="engine", precision="fp16")
    return add_file(bundle, f"engines/{name}.json", kind="sidecar", precision="fp16")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11.4.0 and TensorRT-RTX 1.7.1 seem to be installed."""
    versions = {"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}
    monkeypatch.setattr(backend, "load_builder", lambda builder: (object(), versions[builder]))


def test_without_a_gpu_the_error_says_so(whole_bundle: Path) -> None:
    try:
        export.engine_build.gpu_of_this_machine()
    except EngineError:
        pass
    else:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="no GPU to use here"):
        open_engine(open_bundle(whole_bundle), backend="tensorrt", precision="fp16")


def test_a_bundle_without_engines_says_how_to_build_one(whole_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"No fp16 engine .* Build one here: ifkd engine .* --builder tensorrt"):
        backend.find_engine(open_bundle(whole_bundle), precision="fp16", gpu=H100)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"device": "NVIDIA A100"}, r"built for NVIDIA A100 \(9\.0\), here is NVIDIA H100"),
        ({"compute_capability": "8.0"}, r"\(8\.0\), here is NVIDIA H100 80GB HBM3 \(9\.0\)"),
        ({"builder_version": "10.13.3"}, r"built by tensorrt 10\.13\.3, here is 11\.4\.0"),
        ({"onnx_sha256": "0" * 64}, "built from another ONNX file"),
        ({"engine_sha256": "0" * 64}, "its sidecar describes another file"),
        (
            {"device": "portable", "compute_capability": None, "builder": "tensorrt_rtx", "builder_version": "1.7.1"},
            r"portable engines run on compute capability 8\.0, 8\.6, 8\.9, 12\.0 and later, here is 9\.0",
        ),
    ],
)
@pytest.mark.usefixtures("installed")
def test_an_engine_that_does_not_fit_is_refused_by_its_sidecar(
    bundle_copy: Bundle, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        backend.find_engine(with_engine(bundle_copy, **values), precision="fp16", gpu=H100)


@pytest.mark.usefixtures("installed")
def test_of_two_engines_that_fit_the_one_for_this_gpu_is_taken(bundle_copy: Bundle) -> None:
    portable = {"device": "portable", "compute_capability": None, "builder": "tensorrt_rtx", "builder_version": "1.7.1"}
    bundle = with_engine(bundle_copy, "a_portable", **portable)
    assert backend.find_engine(bundle, precision="fp16", gpu=RTX_4090).name == "engines/a_portable.engine"
    bundle = with_engine(bundle, "b_own", device=RTX_4090[0], compute_capability=RTX_4090[1])
    assert backend.find_engine(bundle, precision="fp16", gpu=RTX_4090).name == "engines/b_own.engine"


def test_a_runtime_that_is_absent_is_one_of_the_reasons(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"made\.engine: .*needs the package tensorrt"):
        backend.find_engine(with_engine(bundle_copy), precision="fp16", gpu=H100)


@pytest.mark.usefixtures("installed")
def test_a_changed_sidecar_is_refused(bundle_copy: Bundle) -> None:
    bundle = with_engine(bundle_copy)
    path = bundle.path / "engines" / "made.json"
    path.write_text(path.read_text().replace("H100", "H200"))
    with pytest.raises(BundleError, match="not the file the manifest describes"):
        backend.find_engine(bundle, precision="fp16", gpu=H100)


OWNERS = {
    "trt": None,
    "trt_builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tiles": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
}
"""Name of a variable in our code -> TensorRT's class of what it holds; None is the module."""


def used_names(module: types.ModuleType) -> set[tuple[str, str]]:
    """Return (variable, attribute path) of everything our code asks TensorRT's objects for."""
    found = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
        owner, path = node, []
        while isinstance(owner, ast.Attribute):
            path.insert(0, owner.attr)
            owner = owner.value
        name = owner.id if isinstance(owner, ast.Name) else ""
        if name == "self" and path:
            name = path.pop(0)
        if name in OWNERS and path and not path[0].startswith("__"):
            found.add((name, ".".join(path)))
    return found


@pytest.mark.parametrize("module", [backend, export.engine_build], ids=["run", "build"])
def test_tensorrt_has_every_name_our_code_uses(module: types.ModuleType) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    names = used_names(module)
    expected = {
        backend: {("_context", "execute_async_v3"), ("context", "set_tensor_address"), ("trt", "Logger.ERROR")},
        export.engine_build: {("config", "set_memory_pool_limit"), ("trt", "BuilderFlag.TF32"), ("tiles", "shape")},
    }
    assert expected[module] <= names
    for owner, path in sorted(names):
        value: Any = rtx if OWNERS[owner] is None else getattr(rtx, str(OWNERS[owner]))
        for part in path.split("."):
            assert hasattr(value, part), f"{owner}.{path}"
            value = getattr(value, part)


def test_the_cuda_runtime_has_every_function_our_code_calls() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    source = Path(backend.__file__).read_text(encoding="utf-8")
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    names = {value for value in strings if isinstance(value, str) and value.startswith("cuda") and value.isalnum()}
    assert {"cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync"} <= names
    for name in names:
        assert callable(getattr(runtime, name)), name
    assert runtime.cudaMemcpyKind.cudaMemcpyHostToDevice != runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost


class Gpu:
    """Host memory that plays the GPU: it records calls, refuses what is wrong, and doubles as runtime module."""

    class cudaMemcpyKind:  # noqa: N801
        cudaMemcpyHostToDevice = 1  # noqa: N815
        cudaMemcpyDeviceToHost = 2  # noqa: N815

    class cudaError_t:  # noqa: N801
        cudaSuccess = types.SimpleNamespace(name="cudaSuccess")  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.failing = ""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == self.failing:
                return (types.SimpleNamespace(name="cudaErrorMemoryAllocation"), None)
            return (self.cudaError_t.cudaSuccess, *self._answer(name, arguments))

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in {"cudaMalloc", "cudaMallocHost"}:
            block = ctypes.create_string_buffer(arguments[0])
            self.memory[ctypes.addressof(block)] = block
            return (ctypes.addressof(block),)
        if name in {"cudaFree", "cudaFreeHost"}:
            del self.memory[arguments[0]]
        if name == "cudaMemcpyAsync":
            ctypes.memmove(arguments[0], arguments[1], arguments[2])
        return (77,) if name == "cudaStreamCreate" else ()


class FakeTensorRT:
    """A runtime whose engine marks each tile's first byte as the only score above 0."""

    def __init__(self, k: int = 354, refuse: str = "") -> None:
        self.k, self.refuse = k, refuse
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.Logger = type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None})
        self.num_io_tensors = 4
        self.names = ["tiles", "boxes", "scores", "labels"]

    def Runtime(self, _log: Any) -> Any:  # noqa: N802
        return self

    def deserialize_cuda_engine(self, _plan: bytes) -> Any:
        return None if self.refuse == "plan" else self

    def create_execution_context(self) -> Any:
        return None if self.refuse == "memory" else self

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return {"tiles": np.uint8, "labels": np.int64}.get(name, np.float32)

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"tiles": (-1, 3, 64, 64), "boxes": (-1, self.k, 4)}.get(name, (-1, self.k))

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> Any:
        largest = 1 if self.refuse == "batch" else 4
        return [(1, 3, 64, 64), (4, 3, 64, 64), (largest, 3, 64, 64)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        batch = self.shape[0]
        tiles = np.frombuffer(ctypes.string_at(self.addresses["tiles"], batch * 3 * 64 * 64), np.uint8)
        scores = np.zeros((batch, self.k), np.float32)
        scores[:, 0] = tiles.reshape(batch, -1)[:, 0] / 255
        ctypes.memmove(self.addresses["scores"], scores.ctypes.data, scores.nbytes)
        return self.refuse != "run"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(runtime=gpu))
    monkeypatch.setattr(backend, "gpu_of_this_machine", lambda: H100)
    return gpu


def opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT) -> Any:
    monkeypatch.setattr(backend, "load_builder", lambda _: (trt, "11.4.0"))
    return open_engine(with_engine(bundle), backend="tensorrt", precision="fp16")


def test_tiles_go_in_answers_come_out_and_everything_is_given_back(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Gpu
) -> None:
    with opened(bundle_copy, monkeypatch, FakeTensorRT()) as engine:
        assert (engine.info.device, engine.info.max_batch) == (H100[0], 4)
        tiles = np.full((3, 3, 64, 64), 51, np.uint8)
        tiles[2] = 255
        machine.calls.clear()
        first = engine.infer(tiles)
        assert machine.calls == ["cudaMemcpyAsync"] * 4 + ["cudaStreamSynchronize"]
        np.testing.assert_allclose(first.scores[:, 0], [0.2, 0.2, 1.0])
        engine.infer(np.zeros((1, 3, 64, 64), np.uint8))
        np.testing.assert_allclose(first.scores[:, 0], [0.2, 0.2, 1.0])
        assert first.boxes.flags.owndata
        assert len(machine.memory) == 8
    assert machine.memory == {}
    assert machine.calls[-1] == "cudaStreamDestroy"
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(tiles)


@pytest.mark.parametrize(
    ("refuse", "message"),
    [("plan", "The runtime refuses"), ("memory", "no memory left"), ("batch", "smaller batches than its sidecar")],
)
def test_an_engine_that_cannot_start_is_refused_and_leaves_no_memory(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Gpu, refuse: str, message: str
) -> None:
    with pytest.raises((EngineError, BundleError), match=message):
        opened(bundle_copy, monkeypatch, FakeTensorRT(refuse=refuse))
    assert machine.memory == {}


def test_a_plan_of_other_tensors_is_refused_before_memory_is_reserved(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Gpu
) -> None:
    with pytest.raises(BundleError, match="is not what the manifest says"):
        opened(bundle_copy, monkeypatch, FakeTensorRT(k=353))
    assert "cudaMalloc" not in machine.calls


def test_a_full_gpu_is_an_engine_error_and_what_was_taken_is_given_back(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Gpu
) -> None:
    machine.failing = "cudaMallocHost"
    with pytest.raises(EngineError, match=r"refused cudaMallocHost \(cudaErrorMemoryAllocation\)"):
        opened(bundle_copy, monkeypatch, FakeTensorRT())
    assert machine.memory == {}


def test_a_failed_run_is_an_engine_error(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch, machine: Gpu) -> None:
    with (
        opened(bundle_copy, monkeypatch, FakeTensorRT(refuse="run")) as engine,
        pytest.raises(EngineError, match="could not be run on NVIDIA H100"),
    ):
        engine.infer(np.zeros((1, 3, 64, 64), np.uint8))
    assert machine.memory == {}

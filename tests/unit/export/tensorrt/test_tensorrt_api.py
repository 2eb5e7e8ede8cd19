"""All attributes, enums and calls of TensorRT and CUDA in the sources exist in the real packages."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fakes.untyped_api_checker import ApiChecker
from packaging.requirements import Requirement
from packaging.version import Version

from export.tensorrt import tensorrt_api
from ifkd.core.errors import EngineError, MissingExtraError

rtx: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
bindings: Any = pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
cuda: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

ROOT = Path(__file__).parents[4]
UNTYPED = {"tensorrt", "tensorrt_rtx", "cuda"}
NOT_IN_EVERY_TENSORRT = {
    "Builder": {"build_serialized_network_to_stream"},
    "OnnxParser": {"load_initializer", "load_model_proto", "parse_model_proto", "set_builder_config"},
    "IBuilderConfig": {
        "all_build_routes",
        "build_route",
        "get_compute_capability",
        "l2_limit_for_tiling",
        "max_num_tactics",
        "num_compute_capabilities",
        "runtime_platform",
        "set_compute_capability",
        "tiling_optimization_level",
    },
    "IOptimizationProfile": {"profile_stream"},
    "Runtime": {
        "defer_weights_loading",
        "dla_workspace_allocation_strategy",
        "engine_header_size",
        "get_engine_validity",
    },
    "ICudaEngine": {
        "create_runtime_config",
        "create_weights_manager",
        "get_aliased_input_tensor",
        "get_engine_stat",
        "load_weights",
        "load_weights_async",
        "unload_weights",
        "weights_loaded",
    },
    "IExecutionContext": {
        "get_runtime_config",
        "is_stream_capturable",
        "set_communicator",
        "unfused_tensors_debug_state",
    },
    "ITimingCache": {"query", "queryKeys", "update"},
    "BuilderFlag": {
        "DISTRIBUTIVE_INDEPENDENCE",
        "EDITABLE_TIMING_CACHE",
        "MONITOR_MEMORY",
        "REFIT_INDIVIDUAL",
        "REQUIRE_USER_ALLOCATION",
        "STRICT_NANS",
    },
    "HardwareCompatibilityLevel": {"SAME_COMPUTE_CAPABILITY"},
}
"""Attributes of TensorRT-RTX 1.7 that the Python API of TensorRT 10.1, 10.16, 11.0 or 11.1 lacks."""


def sources() -> dict[str, ast.Module]:
    paths = [path for package in ("ifkd", "export", "deploy") for path in (ROOT / package).rglob("*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def aliases(trees: dict[str, ast.Module]) -> frozenset[str]:
    return frozenset(
        node.target.id
        for node in ast.walk(trees["export/tensorrt/tensorrt_api.py"])
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and getattr(node.annotation, "id", "") == "TypeAlias"
    )


def checked(trees: dict[str, ast.Module]) -> ApiChecker:
    return ApiChecker(trees, rtx, cuda, aliases(trees)).check()


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Sources that use the aliases of `tensorrt_api`, or import an untyped package."""
    found = sources()
    return {name: tree for name, tree in found.items() if "tensorrt_api" in ast.dump(tree) or imports(tree) & UNTYPED}


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_the_real_packages_have_everything_that_the_sources_use(trees: dict[str, ast.Module]) -> None:
    found = checked(trees)
    assert found.errors == []
    # One example of each source of a type: annotation, result, field, enum, class and argument.
    for use in [
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_device_memory"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("IOptimizationProfile", "set_shape"),
        ("EngineInspector", "get_engine_information"),
        ("ITimingCache", "serialize"),
        ("ParserError", "desc"),
        ("BuilderFlag", "TF32"),
        ("cuda.bindings.runtime", "cudaGraphLaunch"),
        ("cudaMemcpyKind", "cudaMemcpyDeviceToDevice"),
        ("cudaDeviceProp", "major"),
        ("cudaError_t", "cudaErrorInsufficientDriver"),
    ]:
        assert use in found.uses, use
    assert found.optional == {
        ("IExecutionContext", "is_stream_capturable"),
        ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    }


def test_all_releases_of_tensorrt_10_and_11_have_it(trees: dict[str, ast.Module]) -> None:
    found = checked(trees)
    lacking = {(owner, name) for owner, names in NOT_IN_EVERY_TENSORRT.items() for name in names}
    assert not found.uses & lacking
    assert found.optional <= lacking
    assert all(hasattr(getattr(rtx, owner), name) for owner, name in lacking)


def test_only_one_module_imports_the_packages() -> None:
    assert {name for name, tree in sources().items() if imports(tree) & UNTYPED} == {"export/tensorrt/tensorrt_api.py"}


def test_a_misspelled_name_is_an_error(trees: dict[str, ast.Module]) -> None:
    sites = {node.attr: node for node in checked(trees).sites}
    assert len(sites) > 70
    for node in sites.values():
        name = node.attr
        node.attr = f"{name}x"
        try:
            assert any(f"has no {name}x" in error for error in checked(trees).errors), f"{name}, {node.lineno}"
        finally:
            node.attr = name


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(c: api.IExecutionContext): c.execute_async_v3()", r"\(stream_handle\) is called with 0"),
        ("def f(c: api.IExecutionContext): c.set_input_shape('a', (1,), 2)", "is called with 3 arguments"),
        ("def f(c: api.IExecutionContext): c.set_input_shape('a', form=(1,))", r"arguments and \['form'\]"),
        ("def f(r: api.CudaRuntime): r.cudaMemcpyAsync(1, 2, 3, 4)", "is called with 4 arguments"),
        ("def f(r: api.CudaRuntime): use(r.cudaMalloc, 1, 2)", r"cudaMalloc\(size\) is called with 2"),
        ("def f(t: api.Module): t.Builder(1).create_network(0).get_input(0).form", "ITensor has no form"),
        ("def f(t: api.Module): t.OnnxParser(1)", "is called with 1 arguments"),
        ("def f(t: api.Module):\n class A(t.ILogger):\n  def note(self): ...", "note is overridden"),
        (
            "def f(t: api.Module):\n class A(t.ILogger):\n  def log(self, text): ...",
            r"takes \[3\] arguments, the override has 2",
        ),
        ("def f(e: api.ICudaEngine): e.num_io_tensors = 3", "num_io_tensors cannot be set"),
        (
            "def f(t: api.Module, n): getattr(t.BuilderFlag, n).value",
            "the type of the value before .value is unknown",
        ),
        ("def f(r: api.CudaRuntime):\n s, p = r.cudaGetDeviceProperties(0)\n p.nam", "cudaDeviceProp has no nam"),
    ],
)
def test_wrong_calls_and_types_are_errors(trees: dict[str, ast.Module], source: str, error: str) -> None:
    found = checked(
        {"export/tensorrt/tensorrt_api.py": trees["export/tensorrt/tensorrt_api.py"], "a": ast.parse(source)}
    )
    assert len(found.errors) == 1
    assert re.search(error, found.errors[0]), found.errors


def test_a_stream_has_an_address_without_a_deprecated_conversion() -> None:
    stream = cuda.cudaStream_t(1234)
    assert tensorrt_api.native_handle(stream) == 1234
    with pytest.raises(TypeError):
        tensorrt_api.native_handle(object())


@pytest.mark.parametrize(
    ("version", "fits"), [("12.8.0", False), ("12.9", False), ("12.9.1", True), ("13.0.0rc1", True)]
)
def test_bindings_that_block_other_threads_are_refused(
    version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "__version__", version)
    if fits:
        assert tensorrt_api.load_cuda("A test") is cuda
    else:
        with pytest.raises(EngineError, match=rf"cuda-bindings is too old: got {version}, expected at least 12\.9\.1"):
            tensorrt_api.load_cuda("A test")


def test_the_extras_install_bindings_that_are_new_enough() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    oldest = Version(".".join(map(str, tensorrt_api.OLDEST_CUDA_BINDINGS)))
    for extra in tensorrt_api.TENSORRT_EXTRAS:
        requirements = {one.name: one.specifier for one in map(Requirement, extras[extra])}
        assert not requirements["cuda-bindings"].contains("12.9.0")
        assert requirements["cuda-bindings"].contains(str(oldest)) == (extra == "tensorrt-cu12")
        assert requirements[extra].contains("11.4.0.106")


def test_bindings_without_a_driver_are_an_error_of_ours() -> None:
    status, count = cuda.cudaGetDeviceCount()
    if status == cuda.cudaError_t.cudaSuccess and count:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="no usable GPU"):
        tensorrt_api.gpu_of_this_machine()


def test_a_folder_named_like_the_package_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="needs the package tensorrt"):
        tensorrt_api.load_tensorrt("tensorrt")

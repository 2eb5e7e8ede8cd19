"""Every attribute, enum and call of TensorRT and CUDA in our sources exists in the real packages, though none runs."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.untyped_api_checker import Follower

rtx: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
cuda: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")

ROOT = Path(__file__).parents[4]
FOREIGN = {"tensorrt", "tensorrt_rtx", "cuda"}
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
"""What TensorRT-RTX 1.7 has of these classes and the Python API of TensorRT 10.1, 10.16, 11.0 or 11.1 has not."""


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


def followed(trees: dict[str, ast.Module]) -> Follower:
    return Follower(trees, rtx, cuda, aliases(trees)).look()


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Sources that name a foreign type, and those that import a foreign package."""
    found = sources()
    return {name: tree for name, tree in found.items() if "nvidia" in ast.dump(tree) or imports(tree) & FOREIGN}


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_the_real_packages_have_everything_our_sources_ask_for(trees: dict[str, ast.Module]) -> None:
    found = followed(trees)
    assert found.faults == []
    # Samples of each way by which a type is told: annotation, answer, field, enum, class and argument of our own.
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


def test_every_release_of_tensorrt_10_and_11_has_them_too(trees: dict[str, ast.Module]) -> None:
    found = followed(trees)
    lacking = {(owner, name) for owner, names in NOT_IN_EVERY_TENSORRT.items() for name in names}
    assert not found.uses & lacking
    assert found.optional <= lacking
    assert all(hasattr(getattr(rtx, owner), name) for owner, name in lacking)


def test_only_one_module_of_ours_imports_them() -> None:
    assert {name for name, tree in sources().items() if imports(tree) & FOREIGN} == {"export/tensorrt/tensorrt_api.py"}


def test_each_name_is_missed_when_it_is_misspelt(trees: dict[str, ast.Module]) -> None:
    sites = {node.attr: node for node in followed(trees).sites}
    assert len(sites) > 70
    for node in sites.values():
        right = node.attr
        node.attr = f"{right}x"
        try:
            assert any(f"has no {right}x" in fault for fault in followed(trees).faults), f"{right}, {node.lineno}"
        finally:
            node.attr = right


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(c: nvidia.IExecutionContext): c.execute_async_v3()", r"\(stream_handle\) is called with 0"),
        ("def f(c: nvidia.IExecutionContext): c.set_input_shape('a', (1,), 2)", "is called with 3 arguments"),
        ("def f(c: nvidia.IExecutionContext): c.set_input_shape('a', form=(1,))", r"arguments and \['form'\]"),
        ("def f(r: nvidia.CudaRuntime): r.cudaMemcpyAsync(1, 2, 3, 4)", "is called with 4 arguments"),
        ("def f(r: nvidia.CudaRuntime): use(r.cudaMalloc, 1, 2)", r"cudaMalloc\(size\) is called with 2"),
        ("def f(t: nvidia.Module): t.Builder(1).create_network(0).get_input(0).form", "ITensor has no form"),
        ("def f(t: nvidia.Module): t.OnnxParser(1)", "is called with 1 arguments"),
        ("def f(t: nvidia.Module):\n class A(t.ILogger):\n  def note(self): ...", "note is overridden"),
        (
            "def f(t: nvidia.Module):\n class A(t.ILogger):\n  def log(self, text): ...",
            r"takes \[3\] arguments, ours 2",
        ),
        ("def f(e: nvidia.ICudaEngine): e.num_io_tensors = 3", "num_io_tensors cannot be set"),
        ("def f(t: nvidia.Module, n): getattr(t.BuilderFlag, n).value", "nothing is known of what .value"),
        ("def f(r: nvidia.CudaRuntime):\n s, p = r.cudaGetDeviceProperties(0)\n p.nam", "cudaDeviceProp has no nam"),
    ],
)
def test_calls_and_types_are_looked_at_as_well(trees: dict[str, ast.Module], source: str, fault: str) -> None:
    found = followed(
        {"export/tensorrt/tensorrt_api.py": trees["export/tensorrt/tensorrt_api.py"], "a": ast.parse(source)}
    )
    assert len(found.faults) == 1
    assert re.search(fault, found.faults[0]), found.faults

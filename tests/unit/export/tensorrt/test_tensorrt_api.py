"""Imports of TensorRT and cuda-bindings, and the GPU of this machine."""

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from export.tensorrt import tensorrt_api
from ifkd.core.errors import EngineError, MissingExtraError

bindings: Any = pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
cuda: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

ROOT = Path(__file__).parents[4]
UNTYPED = {"tensorrt", "tensorrt_rtx", "cuda"}


def sources() -> dict[str, ast.Module]:
    paths = [path for package in ("ifkd", "export", "deploy") for path in (ROOT / package).rglob("*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_only_one_module_imports_the_packages() -> None:
    assert {name for name, tree in sources().items() if imports(tree) & UNTYPED} == {"export/tensorrt/tensorrt_api.py"}


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

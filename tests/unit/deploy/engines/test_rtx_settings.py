"""Settings of TensorRT-RTX: the calls are those of its real classes, whose objects need a GPU and are replaced."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest

from deploy.engines.rtx_settings import RtxSettings, kernel_file

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture
def cache() -> Any:
    cache = create_autospec(rtx.IRuntimeCache, instance=True)
    cache.deserialize.return_value = True
    cache.serialize.return_value = b"kernels"  # a buffer, as IHostMemory is
    return cache


@pytest.fixture
def engine(cache: Any) -> Any:
    engine = create_autospec(rtx.ICudaEngine, instance=True)
    config = engine.create_runtime_config.return_value = create_autospec(rtx.IRuntimeConfig, instance=True)
    config.create_runtime_cache.return_value = cache
    return engine


def test_kernels_are_compiled_before_the_first_run_of_a_shape(engine: Any, cache: Any, tmp_path: Path) -> None:
    settings = RtxSettings(rtx, engine, tmp_path / "a.kernels")
    config = engine.create_runtime_config.return_value
    eager = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    assert config.dynamic_shapes_kernel_specialization_strategy == eager
    user_managed = rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    config.set_execution_context_allocation_strategy.assert_called_once_with(user_managed)
    config.set_runtime_cache.assert_called_once_with(cache)
    assert settings.create_context(engine) is engine.create_execution_context.return_value
    engine.create_execution_context.assert_called_once_with(config)
    assert "runtime_config: tensorrt_rtx_bindings" in rtx.ICudaEngine.create_execution_context.__doc__


def test_kernels_are_stored_and_read_before_they_are_used(engine: Any, cache: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.kernels"
    settings = RtxSettings(rtx, engine, file)
    cache.deserialize.assert_not_called()
    settings.store_kernels()
    assert file.read_bytes() == b"kernels"
    written = file.stat().st_mtime_ns

    calls = Mock()
    calls.attach_mock(cache.deserialize, "read")
    calls.attach_mock(engine.create_runtime_config.return_value.set_runtime_cache, "use")
    calls.reset_mock()
    RtxSettings(rtx, engine, file).store_kernels()
    assert [name for name, _, _ in calls.mock_calls] == ["read", "use"]
    cache.deserialize.assert_called_once_with(b"kernels")
    assert file.stat().st_mtime_ns == written, "nothing new was compiled"


def test_kernels_of_another_machine_are_replaced(
    engine: Any, cache: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.kernels"
    file.write_bytes(b"other")
    cache.deserialize.return_value = False
    with caplog.at_level("INFO"):
        RtxSettings(rtx, engine, file).store_kernels()
    assert "are for another machine" in caplog.text
    assert file.read_bytes() == b"kernels"


def test_without_a_writable_folder_there_is_a_warning(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    RtxSettings(rtx, engine, tmp_path / "file" / "a.kernels").store_kernels()
    assert "compiles its kernels again in each process" in caplog.text


def test_each_gpu_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path))
    file = kernel_file("ab" * 32, "NVIDIA L4")
    assert file == tmp_path / "tensorrt-rtx" / f"{'ab' * 8}-nvidia-l4.kernels"
    assert file != kernel_file("ab" * 32, "NVIDIA L40S")

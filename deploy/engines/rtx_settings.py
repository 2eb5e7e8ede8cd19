"""Settings of TensorRT-RTX's runtime: when it compiles kernels, and the file in which it stores them.

TensorRT-RTX compiles an engine's kernels on the machine that runs it. By default, a new tile shape first runs slow
general kernels, which a CUDA graph would record; so its kernels are compiled before its first run. Compiled kernels are
stored in the user's cache, not in the bundle, whose files have digests. TensorRT-RTX refuses those of another GPU or
version.
"""

import logging
import re
from pathlib import Path

from export.tensorrt import tensorrt_api
from ifkd.core.errors import OutputError
from ifkd.core.files import atomic_path, cache_folder, make_folder

logger = logging.getLogger(__name__)


def kernel_file(engine_sha256: str, gpu: str) -> Path:
    """Return the file with the compiled kernels of an engine for a GPU, given by name."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower()
    return cache_folder() / "tensorrt-rtx" / f"{engine_sha256[:16]}-{slug}.kernels"


class RtxSettings:
    """The settings of an engine's execution contexts; `file` has the compiled kernels of earlier processes, if any."""

    def __init__(self, trt: tensorrt_api.Module, engine: tensorrt_api.ICudaEngine, file: Path) -> None:
        self._file = file
        self._config = engine.create_runtime_config()
        self._config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._config.set_execution_context_allocation_strategy(strategy)
        self._kernels = self._config.create_runtime_cache()
        self._stored = file.read_bytes() if file.is_file() else b""
        if self._stored and not self._kernels.deserialize(self._stored):
            logger.info("TensorRT-RTX compiles the kernels again: those in %s are for another machine", file)
        self._config.set_runtime_cache(self._kernels)

    def create_context(self, engine: tensorrt_api.ICudaEngine) -> tensorrt_api.IExecutionContext:
        """Return an execution context that needs scratch memory; None if there is no memory for it."""
        return engine.create_execution_context(self._config)

    def store_kernels(self) -> None:
        """Write the compiled kernels if there are new ones; a folder that is not writable is only logged."""
        kernels = bytes(self._kernels.serialize())
        if kernels == self._stored:
            return
        try:
            make_folder(self._file.parent)
            with atomic_path(self._file) as temporary:
                temporary.write_bytes(kernels)
        except OutputError as error:
            logger.warning("TensorRT-RTX compiles its kernels again in each process: %s", error)
        self._stored = kernels

"""Configuration of a TensorRT builder: options, optimization profiles, timing cache and progress bar."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from export.bundle.engine_metadata import BatchProfile, Builder, BuildOptions
from export.tensorrt import tensorrt_api
from ifkd.core.errors import EngineError
from ifkd.core.files import atomic_path
from ifkd.core.input_shapes import InputShapes
from ifkd.core.progress import progress

MAX_DEFAULT_OPT_BATCH = 8


def batch_profiles(opt_batches: Sequence[int], max_batch: int) -> tuple[BatchProfile, ...]:
    """Return the optimization profiles: each accepts batches from 1 up to its own, the last one up to `max_batch`."""
    sizes = sorted({min(opt, max_batch) for opt in opt_batches or (MAX_DEFAULT_OPT_BATCH,)})
    return tuple(BatchProfile(opt=opt, max=max_batch if opt == sizes[-1] else opt) for opt in sizes)


def configure(
    trt: tensorrt_api.Module, config: tensorrt_api.IBuilderConfig, builder: Builder, options: BuildOptions
) -> None:
    """Set the options of a builder.

    Raises:
        EngineError: This version of TensorRT lacks the hardware compatibility.
    """
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.optimization_level
    # TensorRT allows TF32 by default, and an FP32 engine would not compute in FP32.
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if builder == "tensorrt" and options.compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, options.compatibility.upper(), None)
        if level is None:
            problem = f"This TensorRT has no hardware compatibility {options.compatibility}"
            hint = "Update TensorRT, or build with --compatibility ampere_plus."
            raise EngineError(problem, got=f"TensorRT {trt.__version__}", expected="10.9 or later", hint=hint)
        config.hardware_compatibility_level = level
    # Only TensorRT-RTX has this flag; without it, an engine cannot be recorded as a CUDA graph.
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if user_allocation is not None:
        config.set_flag(user_allocation)


def add_profiles(
    trt_builder: tensorrt_api.TrtBuilder,
    config: tensorrt_api.IBuilderConfig,
    network: tensorrt_api.INetworkDefinition,
    profiles: Sequence[BatchProfile],
    sizes: InputShapes | None,
) -> InputShapes:
    """Add the optimization profiles to a builder, and return the tile sizes of the network."""
    tiles = network.get_input(0)
    _, channels, height, width = (int(length) for length in tiles.shape)
    expected, sizes = sizes or "one tile size", sizes or InputShapes((height, width))
    if (height, width) != sizes.axes or min(sizes.smallest) < 1:
        problem = "The tile sizes of the ONNX file differ from those of its bundle"
        got, hint = f"{height} x {width} px, -1 for a dynamic axis", "Export the bundle again."
        raise EngineError(problem, got=got, expected=expected, hint=hint)
    for batch in profiles:
        profile = trt_builder.create_optimization_profile()
        shapes = ((batch.min, sizes.smallest), (batch.opt, sizes.opt), (batch.max, sizes.largest))
        profile.set_shape(tiles.name, *((count, channels, *size) for count, size in shapes))
        if config.add_optimization_profile(profile) < 0:
            got = f"batches of {batch.min} to {batch.max}, tiles of {sizes.smallest} to {sizes.largest} px"
            raise EngineError("The builder refuses an optimization profile", got=got, hint="Export the bundle again.")
    return sizes


@contextlib.contextmanager
def show_progress(trt: tensorrt_api.Module, config: tensorrt_api.IBuilderConfig, label: str) -> Iterator[None]:
    """Show a progress bar of the builder's outermost phase."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Any] = {}

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                if not parent_phase:
                    bars[phase_name] = stack.enter_context(progress(num_steps, label, unit="step"))

            def step_complete(self, phase_name: str, step: int) -> bool:
                if phase_name in bars:
                    bars[phase_name].update(step + 1 - bars[phase_name].n)
                return True

            def phase_finish(self, phase_name: str) -> None:
                if phase_name in bars:
                    bar = bars.pop(phase_name)
                    bar.update(bar.total - bar.n)
                    bar.close()

        monitor = Monitor()  # the builder does not own the monitor, so a local name keeps it alive
        config.progress_monitor = monitor
        yield


@contextlib.contextmanager
def use_timing_cache(config: tensorrt_api.IBuilderConfig, path: Path | None) -> Iterator[None]:
    """Read TensorRT's timing cache, and write it after the build."""
    if path is None:
        yield
        return
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # TensorRT rejects the cache of another GPU or version; the build then starts with an empty one.
    if cache is None or not config.set_timing_cache(cache, False):  # noqa: FBT003
        config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003
    yield
    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))

"""The TensorRT engine on a fake GPU: its bindings, on a stand-in for its libraries, and the order of its work."""

import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.engine_file import with_engine
from fakes.fake_cuda import FakeGpu
from fakes.tensorrt_stand_in import StandIn, plan_of

import deploy.engines.tensorrt_engine as backend
from deploy.engines import open_engine
from deploy.engines.engine import InferenceTiming
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.engine_metadata import BatchProfile
from export.tensorrt import tensorrt_api
from ifkd.core.errors import BundleError, EngineError

H100 = tensorrt_api.Gpu("NVIDIA H100 80GB HBM3", "9.0", "12.9")


def test_without_a_gpu_the_error_says_so(whole_bundle: Path) -> None:
    try:
        tensorrt_api.gpu_of_this_machine()
    except EngineError:
        pass
    else:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="no usable GPU"):
        open_engine(open_bundle(whole_bundle), backend="tensorrt", precision="fp16")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> FakeGpu:
    """A machine with a fake GPU on which the stand-in runs."""
    gpu = FakeGpu()
    stand_in.reset(gpu)
    monkeypatch.setattr(tensorrt_api, "load_cuda", lambda *_: gpu)
    monkeypatch.setattr(tensorrt_api, "native_handle", int)
    monkeypatch.setattr(backend, "gpu_of_this_machine", lambda: H100)
    return gpu


def opened(bundle: Bundle, trt: StandIn, plan: bytes = plan_of(), **metadata: Any) -> Any:
    """Return an open engine of the bundle with the content `plan`."""
    made = with_engine(bundle, plan=plan, builder_version=trt.version, **metadata)
    return open_engine(made, backend="tensorrt", precision="fp16")


def tiles_of(*values: int) -> np.ndarray:
    return np.stack([np.full((3, 64, 64), value, np.uint8) for value in values])


def seen(candidates: Any) -> list[int]:
    assert candidates.labels[:, 0].tolist() == [row % 3 for row in range(len(candidates.labels))]
    return [round(255 * score) for score in candidates.scores[:, 0].tolist()]


def test_tiles_become_candidates_and_all_resources_are_freed(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    with opened(bundle_copy, stand_in) as engine:
        assert (engine.info.device, engine.info.max_batch) == (H100.name, 4)
        first = engine.infer(tiles_of(51, 51, 255))
        assert seen(first) == [51, 51, 255]
        assert seen(engine.infer(tiles_of(7))) == [7]
        assert seen(first) == [51, 51, 255]
        assert first.boxes.flags.owndata
    assert machine.memory == {}
    assert machine.alive == set()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(tiles_of(1))


def test_timing_comes_from_cuda_events(bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu) -> None:
    with opened(bundle_copy, stand_in) as engine:
        assert engine.last_timing is None
        engine.infer(tiles_of(1, 2))
        # The fake counts work items as milliseconds: one copy up; one move and one run; three copies down.
        assert engine.last_timing == InferenceTiming(upload_ms=1.0, compute_ms=2.0, download_ms=3.0)


def test_a_batch_size_is_run_once_and_then_replayed(bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu) -> None:
    with opened(bundle_copy, stand_in) as engine:
        assert [seen(engine.infer(tiles_of(value, 9))) for value in (1, 2, 3)] == [[1, 9], [2, 9], [3, 9]]
        assert machine.calls.count("cudaGraphLaunch") == 2
        assert seen(engine.infer(tiles_of(4))) == [4]
        assert seen(engine.infer(tiles_of(5, 6))) == [5, 6]
        assert engine.graphs == {(2, 3, 64, 64): "replayed", (1, 3, 64, 64): "replayed"}
        assert [context.batch for context in stand_in.contexts] == [2, 1]
        assert len({context.scratch for context in stand_in.contexts}) == 1
    assert machine.alive == set()


def test_tiles_of_several_sizes_go_through_one_memory_each_shape_with_a_graph_of_its_own(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    manifest = bundle_copy.manifest
    taken = manifest.input.model_copy(update={"tile_sides_px": (32, 96)})
    bundle = Bundle(bundle_copy.path, manifest.model_copy(update={"input": taken}))

    def tiles(size: tuple[int, int], *values: int) -> np.ndarray:
        return np.stack([np.full((3, *size), value, np.uint8) for value in values])

    with opened(bundle, stand_in, plan_of(sides=(32, 96))) as engine:
        for turn in (0, 100):
            assert seen(engine.infer(tiles((32, 32), 1 + turn, 2 + turn))) == [1 + turn, 2 + turn]
            assert seen(engine.infer(tiles((96, 96), 3 + turn, 4 + turn, 5, 6))) == [3 + turn, 4 + turn, 5, 6]
            assert seen(engine.infer(tiles((32, 96), 7 + turn, 8 + turn))) == [7 + turn, 8 + turn]
        assert set(engine.graphs) == {(2, 3, 32, 32), (4, 3, 96, 96), (2, 3, 32, 96)}
        with pytest.raises(EngineError, match="sides of 32 to 96 px"):
            engine.infer(tiles((32, 128), 1))
    assert machine.memory == {}
    with pytest.raises(BundleError, match="other batches or tiles than its metadata"):
        opened(bundle, stand_in, plan_of(sides=(64, 96)))


@pytest.mark.parametrize(
    ("failing", "refuse", "capturable", "why"),
    [
        ("cudaStreamBeginCapture", "", True, "cudaStreamBeginCapture returned cudaErrorUnknown"),
        ("cudaStreamEndCapture", "", True, "cudaStreamEndCapture returned cudaErrorUnknown"),
        ("cudaGraphInstantiate", "", True, "cudaGraphInstantiate returned cudaErrorUnknown"),
        ("", "recording", True, "the engine cannot be captured"),
        ("", "", False, "TensorRT-RTX reports that it cannot be captured"),
    ],
)
def test_an_engine_that_cannot_be_recorded_runs_step_by_step_and_says_why(
    bundle_copy: Bundle,
    stand_in: StandIn,
    machine: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: str,
    refuse: str,
    capturable: bool,
    why: str,
) -> None:
    machine.failing = failing
    stand_in.refuse(refuse)
    context = stand_in.module.IExecutionContext  # type: ignore[attr-defined]
    monkeypatch.setattr(context, "is_stream_capturable", lambda *_: capturable, raising=False)  # as TensorRT-RTX has it
    with caplog.at_level(logging.WARNING), opened(bundle_copy, stand_in) as engine:
        assert [seen(engine.infer(tiles_of(value))) for value in (1, 2, 3)] == [[1], [2], [3]]
        assert engine.graphs == {(1, 3, 64, 64): why}
        assert [record.getMessage() for record in caplog.records] == [
            f"engines/made.engine: no CUDA graph for tiles of [1, 3, 64, 64]: {why}"
        ]
    assert "cudaGraphLaunch" not in machine.calls
    assert machine.alive == set()


def test_contexts_and_graphs_of_rare_shapes_are_freed(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "MAX_SHAPES", 3)
    counts = (1, 2, 3, 1, 4, 2, 2, 1, 4)
    batches = [tiles_of(*(10 * number + tile for tile in range(count))) for number, count in enumerate(counts)]
    with opened(bundle_copy, stand_in) as engine:
        engine.infer(tiles_of(9))
        objects, handles = stand_in.alive, len(machine.alive)
        outputs = engine.infer_each(iter(batches))
        assert [seen(one) for one in outputs] == [batch[:, 0, 0, 0].tolist() for batch in batches]
        assert list(engine.graphs) == [(2, 3, 64, 64), (1, 3, 64, 64), (4, 3, 64, 64)]
        assert stand_in.alive == objects + 2
        assert len(machine.alive) == handles + 2
    assert machine.alive == set()


def test_rtx_engines_use_its_settings_and_store_their_kernels_before_they_are_freed(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    nothing_alive = stand_in.alive

    class Settings:
        def __init__(self, trt: Any, engine: Any, file: Path) -> None:
            events.append(file.name)
            assert engine.num_optimization_profiles == 1
            self.strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED

        def create_context(self, engine: Any) -> Any:
            events.append("context")
            return engine.create_execution_context(self.strategy)

        def store_kernels(self) -> None:
            assert stand_in.alive > nothing_alive, "the engine is not freed"
            events.append("stored")

    monkeypatch.setattr(backend, "RtxSettings", Settings)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in.module)
    with opened(bundle_copy, stand_in, builder="tensorrt_rtx") as engine:
        assert seen(engine.infer(tiles_of(5))) == [5]
        name = f"{engine.info.sha256[:16]}-nvidia-h100-80gb-hbm3.kernels"
    assert events == [name, "context", "stored"]
    assert stand_in.alive == nothing_alive
    assert machine.alive == set()


def test_graphs_can_be_switched_off(bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu) -> None:
    bundle = with_engine(bundle_copy, plan=plan_of(), builder_version=stand_in.version)
    with backend.TensorRTEngine(bundle, precision="fp16", graphs=False) as engine:
        assert [seen(engine.infer(tiles_of(value))) for value in (1, 2)] == [[1], [2]]
    assert "cudaStreamBeginCapture" not in machine.calls


def test_each_batch_runs_under_the_smallest_profile_that_takes_it(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    profiles = (BatchProfile(opt=1, max=1), BatchProfile(opt=4, max=4))
    with opened(bundle_copy, stand_in, plan_of(profiles=(1, 4)), batch_profiles=profiles) as engine:
        for values in ([3], [4, 5], [6, 7, 8, 9]):
            assert seen(engine.infer(tiles_of(*values))) == values
        assert [(context.batch, context.profile) for context in stand_in.contexts] == [(1, 0), (2, 1), (4, 1)]


def test_the_next_batch_is_uploaded_before_the_last_is_fetched(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    with opened(bundle_copy, stand_in) as engine:
        batches = [tiles_of(1, 2), tiles_of(3), tiles_of(4, 5, 6), tiles_of(7, 8)]
        assert [seen(found) for found in engine.infer_each(iter(batches))] == [[1, 2], [3], [4, 5, 6], [7, 8]]
        machine.calls.clear()
        outputs = engine.infer_each(iter(batches))
        next(outputs)
        first_wait = machine.calls.index("cudaEventSynchronize")
        assert machine.calls[:first_wait].count("cudaGraphLaunch") == 2
        # Pending outputs, fetched or not, do not block other calls.
        assert seen(engine.infer(tiles_of(9))) == [9]
        assert seen(next(outputs)) == [3]
        outputs.close()
        assert [seen(found) for found in engine.infer_each(iter(batches))][1:] == [[3], [4, 5, 6], [7, 8]]


def test_a_wrong_batch_among_others_ends_them_and_the_engine_resumes(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield tiles_of(1)
        yield np.zeros((1, 3, 32, 32), np.uint8)

    with opened(bundle_copy, stand_in) as engine:
        with pytest.raises(EngineError, match="do not fit the engine"):
            list(engine.infer_each(batches()))
        both = [engine.infer_each(iter([tiles_of(value)] * 3)) for value in (1, 2)]
        assert [seen(next(one)) for one in both[:1]] == [[1]]
        with pytest.raises(EngineError, match="busy with batches that were not fetched"):
            next(both[1])
        assert seen(engine.infer(tiles_of(3))) == [3]


@pytest.mark.parametrize(
    ("refuse", "plan", "message"),
    [
        ("plan", plan_of(), r"TensorRT cannot load .* \(Magic tag does not match\)"),
        ("start", plan_of(), r"TensorRT cannot load .* \(pybind11::init\(\)"),
        ("", plan_of(profiles=(1,)), "other batches or tiles than its metadata"),
        ("", plan_of(score_type=7), r"made\.engine differs from the manifest \(Could not resolve TensorRT datatype"),
    ],
)
def test_an_engine_that_cannot_start_is_refused_and_leaves_no_memory(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu, refuse: str, plan: bytes, message: str
) -> None:
    stand_in.refuse(refuse)
    with pytest.raises((EngineError, BundleError), match=message):
        opened(bundle_copy, stand_in, plan)
    assert machine.memory == {}
    assert machine.alive == set()


def test_a_truncated_plan_is_refused_before_the_runtime_sees_it(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    bundle = with_engine(bundle_copy, builder_version=stand_in.version)
    path = bundle.path / "engines" / "made.engine"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"made\.engine differs from the manifest: got 8 bytes, expected 9"):
        open_engine(bundle, backend="tensorrt", precision="fp16")
    assert (stand_in.alive, machine.calls) == (0, [])


def test_a_plan_of_other_tensors_is_refused_before_memory_is_reserved(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    with pytest.raises(BundleError, match="differs from the manifest"):
        opened(bundle_copy, stand_in, plan_of(k=353))
    assert "cudaMalloc" not in machine.calls


def test_a_full_gpu_is_an_engine_error_and_what_was_taken_is_given_back(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu
) -> None:
    machine.failing = "cudaMallocHost"
    with pytest.raises(EngineError, match=r"cudaMallocHost failed \(cudaErrorUnknown\)"):
        opened(bundle_copy, stand_in)
    assert (machine.memory, machine.alive) == ({}, set())


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ("run", "failed to run .* on NVIDIA H100"),
        ("memory", "no memory left"),
        ("profile", r"refuses tiles of \[1, 3, 64, 64\] \(Profile 0 has been chosen by another context\)"),
        ("shape", r"refuses tiles of \[1, 3, 64, 64\]"),
        ("address", r"refuses tiles of \[1, 3, 64, 64\]"),
    ],
)
def test_a_failed_run_is_an_engine_error_and_the_engine_can_be_closed(
    bundle_copy: Bundle, stand_in: StandIn, machine: FakeGpu, refuse: str, message: str
) -> None:
    if refuse == "profile" and tensorrt_api.release_of(stand_in.version) < (10, 13):
        pytest.skip("the bindings of this TensorRT end the process instead of raising an exception")
    stand_in.refuse(refuse)
    with opened(bundle_copy, stand_in) as engine:
        with pytest.raises(EngineError, match=message):
            engine.infer(tiles_of(1))
        stand_in.refuse("")
        assert seen(engine.infer(tiles_of(2))) == [2]
    assert (machine.memory, machine.alive) == ({}, set())


def test_a_driver_that_is_too_old_is_reported_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    status = types.SimpleNamespace(cudaSuccess="yes", cudaErrorInsufficientDriver="no")
    cuda = types.SimpleNamespace(
        cudaError_t=status,
        cudaDriverGetVersion=lambda: ("yes", 12040),
        cudaRuntimeGetVersion=lambda: ("yes", 13050),
        cudaGetDeviceProperties=lambda _: ("no", None),
    )
    monkeypatch.setattr(tensorrt_api, "load_cuda", lambda *_: cuda)
    with pytest.raises(EngineError, match=r"got a driver for CUDA 12\.4, expected one for CUDA 13\.5"):
        tensorrt_api.gpu_of_this_machine()

import itertools
import json

import numpy as np
import pytest
from fakes import drifting_engine as fake

from deploy.bench.bench_result import unmeasured_files
from deploy.bench.latency import PIPELINED_BATCHES, GroundCoverage, TimingConfig
from deploy.bench.session import BenchmarkCase, BenchmarkSession, EngineKey
from export.bundle.bundle import Bundle, record_file
from export.bundle.manifest import Defaults, InputSpec, Manifest, OutputSpec
from ifkd.core.detections import Detections
from ifkd.core.errors import EngineError
from ifkd.core.postprocess import PostprocessConfig

QUICK = TimingConfig(warmup_s=0.0, warmup_runs=1, min_s=1e-9, min_samples=3, rounds=3)
GROUND = GroundCoverage((fake.TILE, fake.TILE), 24, 0.5)


def case(precision="fp32", batch=1, backend="onnxruntime"):
    return BenchmarkCase(EngineKey(backend, precision), batch)


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x" * 2_000_000)
    for name in ("gpu-trt-fp16", "bare-fp32"):
        (tmp_path / f"engines/{name}.engine").write_bytes(b"y" * 1_500_000)
    sidecar = {"builder": "tensorrt", "builder_version": "11.4", "device": "NVIDIA H100"}
    (tmp_path / "engines/gpu-trt-fp16.json").write_text(json.dumps(sidecar))
    files = {
        "model.onnx": record_file(tmp_path, "model.onnx", kind="onnx", precision="fp32"),
        "engines/gpu-trt-fp16.engine": record_file(
            tmp_path, "engines/gpu-trt-fp16.engine", kind="engine", precision="fp16"
        ),
        "engines/bare-fp32.engine": record_file(tmp_path, "engines/bare-fp32.engine", kind="engine", precision="fp32"),
    }
    manifest = Manifest(
        name="squares",
        created="2026-11-20T10:00:00Z",
        producer="test",
        provenance={},
        detector={},
        input=InputSpec(tile_px=(fake.TILE, fake.TILE), max_batch=4),
        outputs=OutputSpec(candidates=64),
        classes=fake.CLASSES,
        category_ids=(1, 2, 3),
        defaults=Defaults(postprocess=PostprocessConfig(), overlap_px=24),
        files=files,
    )
    return Bundle(tmp_path, manifest)


def tiles(n=4):
    return np.zeros((n, 3, fake.TILE, fake.TILE), np.uint8)


@pytest.mark.parametrize("overlaps", [False, True])
def test_overlapped_batches_are_timed_where_the_engine_overlaps_them(bundle, overlaps):
    batches = []

    class Overlapping(fake.DriftingEngine):
        overlaps_batches = overlaps

        def _run_each(self, given):
            for one in given:
                batches.append(len(one))
                yield self._run(one)

    with BenchmarkSession(bundle, lambda _: Overlapping(fake.make_engine()), tiles(), QUICK) as session:
        session.run([case(batch=2)])
        (cell,) = session.cells(GROUND)
    assert (cell.pipelined_tiles_per_s is not None) == overlaps
    assert batches == [2] * (PIPELINED_BATCHES * (1 + 3) if overlaps else 0)  # the warm-up and three rounds


def test_each_cell_is_measured_or_has_the_reason(bundle):
    def open_engine(key):
        if key.precision == "fp16":
            raise EngineError("There is no GPU")
        return fake.make_engine()

    with BenchmarkSession(bundle, open_engine, tiles(), QUICK) as session:
        session.run([case(precision, batch) for precision in ("fp32", "fp16") for batch in (1, 4, 8)])
        cells = session.cells(GROUND)
    one, four, eight, *half = cells
    assert one.latency.runs == four.latency.runs == 3
    assert (one.latency.batch, four.latency.batch) == (1, 4)
    assert one.engine.file == "model.onnx"
    assert one.file_mb == pytest.approx(2.0)
    assert one.failure is None
    assert eight.latency is None
    assert "at most 4 tiles" in eight.failure
    assert [cell.failure for cell in half] == ["There is no GPU."] * 3
    assert all(cell.latency is None and cell.engine is None for cell in half)


def test_an_engine_is_loaded_once_for_all_batches_and_closed(bundle):
    opened = []

    class Counting(fake.DriftingEngine):
        closed = False

        def close(self):
            self.closed = True

    def open_engine(_):
        opened.append(Counting(fake.make_engine()))
        return opened[-1]

    with BenchmarkSession(bundle, open_engine, tiles(), QUICK) as session:
        session.run([case(batch=1), case(batch=2)])
    assert len(opened) == 1
    assert opened[0].closed


def test_a_late_failure_keeps_the_samples_and_the_reason(bundle):
    calls = itertools.count()

    def failing(tile):
        if next(calls) == 4:
            raise MemoryError("no memory left")
        return Detections.empty()

    with BenchmarkSession(bundle, lambda _: fake.make_engine(failing), tiles(), QUICK) as session:
        session.run([case()])
        (cell,) = session.cells(GROUND)
    assert cell.failure == "MemoryError: no memory left"
    assert cell.latency.runs == 2  # one run after loading, one warm-up, two samples
    assert not cell.latency.stability.stable


def test_an_interruption_keeps_the_samples(bundle):
    calls = itertools.count()

    def interrupted(tile):
        if next(calls) == 5:  # two runs after loading, two warm-ups, one sample
            raise KeyboardInterrupt
        return Detections.empty()

    with BenchmarkSession(bundle, lambda _: fake.make_engine(interrupted), tiles(), QUICK) as session:
        with pytest.raises(KeyboardInterrupt):
            session.run([case(), case(backend="torch")])
        first, second = session.cells(GROUND)
    assert first.latency.runs == 1
    assert second.latency is None
    assert "Interrupted" in second.failure


def test_unmeasured_files_are_listed_with_their_builder(bundle):
    gpu, bare = sorted(unmeasured_files(bundle, ()), key=lambda file: file.file, reverse=True)
    assert (gpu.builder, gpu.built_for, gpu.precision) == ("tensorrt 11.4", "NVIDIA H100", "fp16")
    assert gpu.file_mb == pytest.approx(1.5)
    assert gpu.reason == "not measured: needs an NVIDIA GPU"
    assert (bare.builder, bare.built_for) == (None, None)

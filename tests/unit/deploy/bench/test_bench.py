import itertools
import json

import numpy as np
import pytest
from fakes import drifting_engine as world

from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.bench.bench import NOISE_SEED, BenchmarkSession, bench_tiles, unmeasured_files
from deploy.bench.latency import GroundCoverage, TimingConfig
from export.bundle.bundle import Bundle, record_file
from export.bundle.manifest import Defaults, InputSpec, Manifest, OutputSpec
from ifkd.core.detections import Detections
from ifkd.core.errors import EngineError
from ifkd.core.postprocess import PostprocessConfig

QUICK = TimingConfig(warmup_s=0.0, warmup_runs=1, min_s=1e-9, min_samples=3, rounds=3)
GROUND = GroundCoverage((world.TILE, world.TILE), 24, 0.5)
FRAMING = TilingConfig(1.0, (world.TILE, world.TILE), 24, PostprocessConfig())


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
        input=InputSpec(tile_px=(world.TILE, world.TILE), max_batch=4),
        outputs=OutputSpec(candidates=64),
        classes=world.CLASSES,
        category_ids=(1, 2, 3),
        defaults=Defaults(selection=PostprocessConfig(), overlap_px=24),
        files=files,
    )
    return Bundle(tmp_path, manifest)


def tiles(n=4):
    return np.zeros((n, 3, world.TILE, world.TILE), np.uint8)


def test_every_cell_is_measured_or_says_why_not(bundle):
    def open_one(backend, precision):
        if precision == "fp16":
            raise EngineError("No GPU answers")
        return world.engine()

    with BenchmarkSession(bundle, open_one, tiles(), QUICK) as race:
        race.run([("onnxruntime", precision, batch) for precision in ("fp32", "fp16") for batch in (1, 4, 8)])
        cells = race.cells(GROUND)
    one, four, eight, *half = cells
    assert one.latency.runs == four.latency.runs == 3
    assert (one.latency.batch, four.latency.batch) == (1, 4)
    assert one.engine.file == "model.onnx"
    assert one.file_mb == pytest.approx(2.0)
    assert one.failure is None
    assert eight.latency is None
    assert "at most 4 tiles" in eight.failure
    assert [cell.failure for cell in half] == ["No GPU answers."] * 3
    assert all(cell.latency is None and cell.engine is None for cell in half)


def test_an_engine_is_loaded_once_for_all_batches_and_closed(bundle):
    opened = []

    class Counting(world.Drifting):
        closed = False

        def close(self):
            self.closed = True

    def open_one(backend, precision):
        opened.append(Counting(world.engine()))
        return opened[-1]

    with BenchmarkSession(bundle, open_one, tiles(), QUICK) as race:
        race.run([("onnxruntime", "fp32", 1), ("onnxruntime", "fp32", 2)])
    assert len(opened) == 1
    assert opened[0].closed


def test_a_failure_half_way_keeps_the_samples_and_the_reason(bundle):
    calls = itertools.count()

    def tiring(tile):
        if next(calls) == 4:
            raise MemoryError("no memory left")
        return Detections.empty()

    with BenchmarkSession(bundle, lambda *_: world.engine(tiring), tiles(), QUICK) as race:
        race.run([("onnxruntime", "fp32", 1)])
        (cell,) = race.cells(GROUND)
    assert cell.failure == "MemoryError: no memory left"
    assert cell.latency.runs == 2  # one answer after loading, one to warm up, two that count
    assert not cell.latency.stability.stable


def test_an_interruption_loses_nothing(bundle):
    calls = itertools.count()

    def interrupted(tile):
        if next(calls) == 5:  # two answers after loading, two to warm up, one of the first engine that counts
            raise KeyboardInterrupt
        return Detections.empty()

    with BenchmarkSession(bundle, lambda *_: world.engine(interrupted), tiles(), QUICK) as race:
        with pytest.raises(KeyboardInterrupt):
            race.run([("onnxruntime", "fp32", 1), ("torch", "fp32", 1)])
        first, second = race.cells(GROUND)
    assert first.latency.runs == 1
    assert second.latency is None
    assert "Interrupted" in second.failure


def test_files_that_no_engine_ran_are_listed_with_their_builder(bundle):
    gpu, bare = sorted(unmeasured_files(bundle, ()), key=lambda file: file.file, reverse=True)
    assert (gpu.builder, gpu.built_for, gpu.precision) == ("tensorrt 11.4", "NVIDIA H100", "fp16")
    assert gpu.file_mb == pytest.approx(1.5)
    assert gpu.reason == "not measured: needs an NVIDIA GPU"
    assert (bare.builder, bare.built_for) == (None, None)


def test_tiles_are_those_of_the_images(tmp_path):
    path = world.write_world(tmp_path / "w", images=3)
    dataset = open_data(path, images=None, recipe=None, classes=world.CLASSES, needed_by="bench")
    found, source = bench_tiles(dataset, FRAMING)
    assert found.shape == (3, 3, world.TILE, world.TILE)
    assert found.dtype == np.uint8
    assert (source.kind, source.tiles) == ("images", 3)
    assert "test.json" in source.description
    assert len(world.squares(found[0])) == 4


def test_without_images_the_tiles_are_noise_and_say_so():
    found, source = bench_tiles(None, FRAMING)
    again, _ = bench_tiles(None, FRAMING)
    np.testing.assert_array_equal(found, again)
    assert source.kind == "noise"
    assert "noise" in source.description
    expected = np.random.default_rng(NOISE_SEED).integers(0, 256, found.shape, np.uint8)
    np.testing.assert_array_equal(found, expected)

"""What a bench says beyond one engine's latency: ratios, stages, the reference's size, and that its clock is true."""

import json

import numpy as np
import pytest
from fakes import drifting_engine as world

import deploy.bench.latency as clockwork
import deploy.bench.stage_timing as stage_clock
from deploy.accuracy.evaluated_model import open_model
from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.bench.bench import speedups_of
from deploy.bench.latency import TimingConfig, benchmark_case, measure, measure_interleaved
from deploy.bench.speedup import speedup_of
from deploy.bench.stage_timing import COPIED, NOT_COPIED, STAGES, measure_stages
from deploy.engines.engine import InferenceParts
from deploy.report.sections import bench_stage_chart
from ifkd.core.detections import Detections
from ifkd.core.postprocess import PostprocessConfig

FRAMING = TilingConfig(1.0, (world.TILE, world.TILE), 24, PostprocessConfig())


class Clock:
    """A clock that stands still unless an engine moves it."""

    def __init__(self):
        self.now = 1_000

    def perf_counter_ns(self):
        return self.now


def taking(clock, nanoseconds):
    durations = iter(nanoseconds)

    def find(_):
        clock.now += next(durations)
        return Detections.empty()

    return world.engine(find)


def test_known_durations_are_recovered_exactly(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(clockwork, "time", clock)
    known = np.random.default_rng(4).integers(1_000_000, 9_000_000, 400).tolist()
    procedure = TimingConfig(warmup_s=0.01, warmup_runs=3, min_s=0.6, min_samples=30, rounds=6)
    samples = measure(taking(clock, known), np.zeros((4, 3, 96, 96), np.uint8), batch=1, procedure=procedure)
    taken = [*samples.warmup_ns, *samples.all_ns]
    assert taken == known[: len(taken)]
    assert len(samples.all_ns) >= 30
    assert all(sum(window) >= 0.1e9 for window in samples.windows_ns)


def test_variants_take_turns_and_a_slow_spell_slows_both(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(clockwork, "time", clock)
    spell = [1.0, 1.0, 3.0, 3.0, 1.0, 1.0]
    procedure = TimingConfig(warmup_s=0, warmup_runs=1, min_s=1e-9, min_samples=30, rounds=6)
    tiles = np.zeros((2, 3, 96, 96), np.uint8)
    order = []

    def durations(factor):
        return [int(factor * 1e6)] + [int(factor * 1e6 * slow) for slow in spell for _ in range(5)]

    a, b = (benchmark_case(name, taking(clock, durations(f)), tiles, batch=1) for name, f in (("a", 2.0), ("b", 1.0)))
    measure_interleaved([a, b], procedure, after_turn=lambda turn: order.append(turn.name))
    assert order == ["a", "b"] * 7  # warm-up and six rounds
    ratio = speedup_of("b", b.samples.windows_ns, against="a", others=a.samples.windows_ns, batch=1)
    assert (ratio.ratio, ratio.low, ratio.high, ratio.speed_up) == (0.5, 0.5, 0.5, 2.0)
    assert ratio.clear
    assert ratio.rounds == 6


def test_a_ratio_that_rounds_disagree_on_is_not_clear():
    ratio = speedup_of("b", [[90], [110], [100]], against="a", others=[[100], [100], [100]], batch=1)
    assert (ratio.low, ratio.ratio, ratio.high) == (0.9, 1.0, 1.1)
    assert not ratio.clear
    assert speedup_of("b", [[], [1]], against="a", others=[[1], []], batch=1) is None


def test_the_reference_is_what_everything_is_held_against():
    from fakes import report_inputs as parts

    cells = [cell for cell in parts.bench().cells if cell.backend == "onnxruntime"]
    first = {ratio.against for ratio in speedups_of(cells)}
    assert first == {"onnxruntime fp32"}
    teacher = cells[0].model_copy(update={"role": "reference", "backend": "torch", "latency": parts.latency(1, 152.0)})
    ratios = [ratio for ratio in speedups_of([*cells, teacher]) if ratio.batch == 1]
    assert {ratio.against for ratio in ratios} == {"reference torch fp32"}
    fp32 = next(ratio for ratio in ratios if ratio.name == "onnxruntime fp32")
    assert fp32.speed_up == pytest.approx(152 / 38, rel=0.05)
    assert fp32.clear


def test_stages_cover_the_way_from_file_to_file(tmp_path):
    path = world.write_world(tmp_path / "world", images=5, size=(150, 150))
    data = open_data(path, images=None, recipe=None, classes=world.CLASSES, needed_by="bench")
    run = measure_stages(world.engine(), data.images, FRAMING, most=4)
    assert [stage.stage for stage in run.stages] == [stage for stage in STAGES if stage not in {"upload", "download"}]
    assert (run.transfers, run.device) == (NOT_COPIED, "CPU")
    assert (run.images, run.tiles) == (4, 16)
    assert sum(stage.share for stage in run.stages) == pytest.approx(1)
    assert all(len(stage.samples_ns) == 4 and min(stage.samples_ns) > 0 for stage in run.stages)


class Remote(world.Drifting):
    """An engine that tells what it copied: its clock moves by 10 ms a tile, of which 3 go up and 2 come down."""

    def __init__(self, clock):
        super().__init__(world.engine(device="NVIDIA H100"))
        self.clock, self.told = clock, None

    def _run(self, tiles):
        self.clock.now += 10_000_000
        self.told = InferenceParts(upload_ms=3.0, compute_ms=4.0, download_ms=2.0)
        return super()._run(tiles)

    @property
    def parts(self):
        return self.told


def test_what_an_engine_copies_is_a_stage_and_the_stages_add_up(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stage_clock, "time", clock)
    path = world.write_world(tmp_path / "world", images=3, size=(150, 150))
    data = open_data(path, images=None, recipe=None, classes=world.CLASSES, needed_by="bench")
    run = measure_stages(Remote(clock), data.images, FRAMING)
    found = {stage.stage: stage for stage in run.stages}
    assert tuple(found) == STAGES
    tiles = 4
    assert found["upload"].samples_ns == [tiles * 3_000_000] * 3
    assert found["download"].samples_ns == [tiles * 2_000_000] * 3
    assert found["infer"].samples_ns == [tiles * 5_000_000] * 3
    assert sum(sum(stage.samples_ns) for stage in run.stages) == 3 * tiles * 10_000_000
    assert (run.transfers, run.device) == (COPIED, "NVIDIA H100")


def test_engines_with_and_without_copies_stand_in_one_chart():
    from fakes import report_inputs as parts

    bench = parts.bench()
    near = bench.stages[0]
    more = [near.stages[2].model_copy(update={"stage": name, "p50_ms": 0.7}) for name in ("upload", "download")]
    ordered = sorted([*near.stages, *more], key=lambda stage: STAGES.index(stage.stage))
    far = near.model_copy(update={"backend": "tensorrt", "stages": tuple(ordered)})
    chart = bench_stage_chart(bench.model_copy(update={"stages": (near, far)}), 0)
    assert "upload: onnxruntime fp32 none, tensorrt fp32 0.70" in chart.description
    assert chart.body.count("nothing to copy") == 2
    assert "upload" not in bench_stage_chart(bench, 0).description


def test_operations_are_those_of_a_plain_count(checkpoint_path):
    """A multiplication and an addition for each weight that meets a pixel, counted at every convolution by a hook."""
    import torch

    from ifkd.models import normalize
    from ifkd.models.checkpoint import build_from, load_checkpoint

    counted = open_model(checkpoint_path).with_complexity()
    detector = build_from(load_checkpoint(checkpoint_path)).eval()
    total = 0

    def count(module, _, output):
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()

    for module in detector.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        detector(normalize(torch.zeros((1, 3, 64, 64), dtype=torch.uint8)))
    assert total > 1e8
    assert counted.gflops_per_tile == pytest.approx(total / 1e9, rel=1e-9)
    assert counted.parameters == sum(parameter.numel() for parameter in detector.parameters())
    assert counted.weights_mb == pytest.approx(checkpoint_path.stat().st_size / 1e6)
    assert json.loads(counted.model_dump_json())["gflops_per_tile"] > 0

import pytest
from fakes import drifting_engine as fake
from fakes import report_inputs as parts

import deploy.bench.stage_timing as module
from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.bench.stage_timing import COPIED, NOT_COPIED, STAGES, profile_stages
from deploy.engines.engine import InferenceTiming
from deploy.report.figures import stage_chart
from ifkd.core.postprocess import PostprocessConfig

TILING = TilingConfig(1.0, (fake.TILE, fake.TILE), 24, PostprocessConfig())


class Clock:
    """A clock that only an engine advances."""

    def __init__(self):
        self.now = 1_000

    def perf_counter_ns(self):
        return self.now


def dataset(folder, images):
    path = fake.write_dataset(folder / "data", images=images, size=(150, 150))
    return open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="bench")


def test_stages_cover_everything_from_file_to_file(tmp_path):
    profile = profile_stages(fake.make_engine(), dataset(tmp_path, 5).images, TILING, max_images=4)
    assert [stage.stage for stage in profile.stages] == [one for one in STAGES if one not in {"upload", "download"}]
    assert (profile.transfers, profile.device) == (NOT_COPIED, "CPU")
    assert (profile.images, profile.tiles) == (4, 16)
    assert sum(stage.fraction for stage in profile.stages) == pytest.approx(1)
    assert all(len(stage.samples_ns) == 4 and min(stage.samples_ns) > 0 for stage in profile.stages)


class DeviceEngine(fake.DriftingEngine):
    """An engine that advances the clock by 10 ms a tile, and reports 3 ms of upload and 2 ms of download."""

    def __init__(self, clock):
        super().__init__(fake.make_engine(device="NVIDIA H100"))
        self.clock, self.timing = clock, None

    def _run(self, tiles):
        self.clock.now += 10_000_000
        self.timing = InferenceTiming(upload_ms=3.0, compute_ms=4.0, download_ms=2.0)
        return super()._run(tiles)

    @property
    def last_timing(self):
        return self.timing


def test_copies_are_stages_and_the_stages_add_up(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    profile = profile_stages(DeviceEngine(clock), dataset(tmp_path, 3).images, TILING)
    found = {stage.stage: stage for stage in profile.stages}
    assert tuple(found) == STAGES
    tiles = 4
    assert found["upload"].samples_ns == [tiles * 3_000_000] * 3
    assert found["download"].samples_ns == [tiles * 2_000_000] * 3
    assert found["infer"].samples_ns == [tiles * 5_000_000] * 3
    assert sum(sum(stage.samples_ns) for stage in profile.stages) == 3 * tiles * 10_000_000
    assert (profile.transfers, profile.device) == (COPIED, "NVIDIA H100")


def test_engines_with_and_without_copies_share_a_chart():
    bench = parts.bench()
    on_cpu = bench.stages[0]
    copies = [on_cpu.stages[2].model_copy(update={"stage": name, "p50_ms": 0.7}) for name in ("upload", "download")]
    ordered = sorted([*on_cpu.stages, *copies], key=lambda stage: STAGES.index(stage.stage))
    on_gpu = on_cpu.model_copy(update={"backend": "tensorrt", "stages": tuple(ordered)})
    chart = stage_chart(bench.model_copy(update={"stages": (on_cpu, on_gpu)}), 0)
    assert "upload: onnxruntime fp32 none, tensorrt fp32 0.70" in chart.description
    assert chart.body.count("nothing to copy") == 2
    assert "upload" not in stage_chart(bench, 0).description

"""Reports never show a figure of a CPU with the name of a GPU."""

import re
from html.parser import HTMLParser

import pytest
from fakes import report_inputs as parts

from deploy.accuracy.provenance import EngineRecord
from deploy.bench.bench_result import compute_speedups
from deploy.bench.system_monitor import GpuRecord
from deploy.cli.bench import summary
from deploy.engines import open_engine
from deploy.report.page import console, render
from deploy.report.report import assemble
from export.bundle.bundle import open_bundle
from ifkd.core.environment import describe_environment

GPU = "NVIDIA H100 80GB HBM3"
GPU_RECORD = GpuRecord(
    name=GPU,
    sm_clock_mhz_min=1410,
    sm_clock_mhz_max=1980,
    temperature_c_max=61,
    power_w_max=412.0,
    memory_mb_peak=900.0,
    throttled=("power cap",),
)
MEDIANS_MS = {"38.8", "134", "42.4", "165", "175", "53.1"}
"""Medians of the CPU's engines as the page prints them; the GPU's are 2 ms and 5 ms."""
BLOCKS = {"tr", "li", "p", "text", "figcaption", "desc"}


class Blocks(HTMLParser):
    """The words of every row, item, sentence and label of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.depth, self.words, self.found = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, _):
        if tag in BLOCKS:
            self.depth.append(len(self.words))

    def handle_endtag(self, tag):
        if tag in BLOCKS and self.depth:
            self.found.append(" ".join(self.words[self.depth.pop() :]))

    def handle_data(self, data):
        self.words.append(data.strip())


def both():
    """A bench of engines on a CPU and, in the same run, of one on a GPU."""
    bench = parts.bench()
    record = parts.engine_info("fp16")
    cells = list(bench.cells)
    for batch, median in ((1, 2.0), (4, 5.0)):
        engine = EngineRecord.of(record).model_copy(
            update={"backend": "tensorrt", "device": GPU, "file": "engines/h100.engine", "sha256": "8" * 64}
        )
        more = {"backend": "tensorrt", "engine": engine, "latency": parts.latency(batch, median), "process_cost": None}
        cells.append(cells[2].model_copy(update={"batch": batch, **more}))
    machine = bench.machine.model_copy(update={"gpus": (GPU_RECORD,), "nvml": "monitored"})
    return bench.model_copy(update={"cells": tuple(cells), "speedups": compute_speedups(cells), "machine": machine})


def only_cpu():
    """A bench of engines on a CPU, on a machine with a busy GPU and an engine file built for it."""
    bench = parts.bench()
    machine = bench.machine.model_copy(update={"gpus": (GPU_RECORD,), "nvml": "monitored"})
    files = tuple(one.model_copy(update={"built_for": GPU}) for one in bench.not_measured)
    environment = {**bench.environment, "gpus": [{"name": GPU}]}
    return bench.model_copy(update={"machine": machine, "not_measured": files, "environment": environment})


def blocks_of(bench):
    report = assemble(title="T", evaluations={}, benches=[bench])
    files = render(report)
    pages = [text.decode() for name, text in files.items() if name.endswith((".html", ".svg"))]
    found = [block for page in pages for block in Blocks(page).found]
    found += [*files["report.md"].decode().splitlines(), *console(report).splitlines(), *summary(bench).splitlines()]
    return [" ".join(block.split()) for block in found]


def figures(block):
    return set(re.findall(r"(?<![\d.])\d+(?:\.\d+)?(?![\d.]*\d)", block))


@pytest.mark.parametrize("make", [both, only_cpu])
def test_no_row_sentence_or_label_puts_a_cpu_s_figure_under_a_gpu(make):
    blocks = blocks_of(make())
    found = [block for block in blocks if MEDIANS_MS & figures(block)]
    assert len(found) > 20
    for block in found:
        if GPU in block:  # a chart's description lists all engines, each with its device
            assert re.search(r" on CPU, batch \d: median", block), block
        else:
            assert "NVIDIA" not in block, block


def test_every_row_with_a_latency_names_its_device():
    bench = both()
    rows = [block for block in blocks_of(bench) if re.match(r"\| .*model.*onnxruntime", block)]
    assert rows
    assert all("CPU, 2 threads" in row for row in rows if "not measured" not in row)
    labels = {block for block in blocks_of(bench) if re.fullmatch(r".*, batch \d( \(unstable\))?", block)}
    assert {"onnxruntime fp32 on CPU, batch 1", f"tensorrt fp16 on {GPU}, batch 4"} <= labels
    ratios = [block for block in blocks_of(bench) if "within noise" in block or "clear" in block]
    assert any(f"tensorrt fp16 on {GPU}" in row and "torch fp32 on CPU" in row for row in ratios)


def test_a_gpu_that_computed_nothing_lends_neither_its_clocks_nor_its_throttling():
    blocks = blocks_of(only_cpu())
    assert not any("SM clock" in block or "throttled" in block for block in blocks)
    assert any(f"The machine has a GPU ({GPU}), which no engine used." in block for block in blocks)
    used = blocks_of(both())
    assert any("SM clock 1410 to 1980 MHz" in block for block in used)
    assert any(f"{GPU} throttled: power cap" in block for block in used)


def test_engines_on_a_cpu_say_so_on_a_machine_with_a_gpu(whole_bundle, monkeypatch):
    monkeypatch.setattr(
        "ifkd.core.environment._output", lambda program, *_: f"{GPU}, 1, 2, 9.0, 3" if program == "nvidia-smi" else None
    )
    assert describe_environment()["gpus"][0]["name"] == GPU
    bundle = open_bundle(whole_bundle)
    for backend in ("onnxruntime", "torch"):
        with open_engine(bundle, backend=backend, threads=2) as engine:
            assert engine.info.device == "CPU, 2 threads"

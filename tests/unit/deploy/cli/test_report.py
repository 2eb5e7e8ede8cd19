import json

import pytest
from fakes import drifting_engine as fake
from fakes import report_inputs as parts

import deploy.accuracy.evaluated_model
import deploy.bench.bench
from deploy.cli.main import main
from export.bundle.bundle import record_file, write_manifest
from export.bundle.manifest import Defaults, InputSpec, Manifest, OutputSpec
from ifkd.core import timing
from ifkd.core.postprocess import PostprocessConfig

FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
QUICK = ["--seconds", "0.001", "--samples", "3", "--rounds", "3"]


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for precision, name in FILES.items():
        (folder / name).write_bytes(precision.encode())
    records = {name: record_file(folder, name, kind="onnx", precision=key) for key, name in FILES.items()}
    manifest = Manifest(
        name="squares",
        created="2026-11-20T10:00:00Z",
        producer="test",
        provenance={"notes": ["Random encoder."]},
        detector={"family": "retinanet", "backbone": "resnet18"},
        input=InputSpec(tile_px=(fake.TILE, fake.TILE), max_batch=4),
        outputs=OutputSpec(candidates=64),
        classes=fake.CLASSES,
        category_ids=(1, 2, 3),
        defaults=Defaults(postprocess=PostprocessConfig(), overlap_px=24),
        files=records,
    )
    write_manifest(folder, manifest)
    drifts = {}

    def open_fake(_, *, backend="onnxruntime", precision="fp32", threads=None, server=None):
        file = FILES[precision] if backend != "torch" else "model.safetensors"
        sha256 = records[file].sha256 if file in records else "4" * 64
        engine = fake.make_engine(backend=backend, precision=precision, file=file, sha256=sha256)
        return fake.DriftingEngine(engine, drifts.get(precision, lambda candidates: candidates))

    monkeypatch.setattr(deploy.accuracy.evaluated_model, "open_engine", open_fake)
    monkeypatch.setattr(deploy.bench.bench, "measure_process_cost", lambda *_, **__: parts.process_cost(3.0))
    monkeypatch.chdir(tmp_path)
    open_fake.drifts = drifts
    return open_fake


@pytest.fixture
def data(tmp_path):
    return str(fake.write_dataset(tmp_path / "world"))


def darken(candidates):
    candidates.scores[:] *= 0.9
    return candidates


def ifkd(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def error_line(err):
    """Return the line of the error; the lines before it are progress bars."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert len(lines) == 1
    return lines[0]


def test_from_bundle_to_report(bundle, data, capsys, tmp_path):
    code, out, _ = ifkd(capsys, "evaluate", "bundle", "--data", data)
    assert code == 0
    assert "all 1.000 1.000 1.000 24" in " ".join(out.split())
    assert out.endswith("evaluation.json\n")
    code, out, _ = ifkd(capsys, "bench", "bundle", "--data", data, "--batch", "1", "2", *QUICK)
    assert code == 0
    assert out.count("onnxruntime fp32") >= 2
    code, out, _ = ifkd(capsys, "parity", "bundle", "--data", data)
    assert code == 0
    assert "onnxruntime fp16: passed: within all 12 tolerances" in out
    code, out, _ = ifkd(
        capsys, "report", "--out", "report", "--evaluation", "student=evaluation.json", "--bench", "bench.json",
        "--parity", "parity.json", "--note", "First.", "Second.",
    )  # fmt: skip
    assert code == 0
    assert "model.fp16.onnx" in out
    assert "report/report.html" in out
    text = json.loads((tmp_path / "report/report.json").read_text())
    assert text["notes"][:3] == ["First.", "Second.", "Random encoder."]
    assert "fp16" in text["notes"][3]
    assert text["environment"] == text["benches"][0]["environment"]
    assert text["environment"]


def test_a_report_is_rendered_again_from_its_file(bundle, data, capsys, tmp_path):
    ifkd(capsys, "evaluate", "bundle", "--data", data)
    ifkd(capsys, "report", "--out", "report", "--evaluation", "student=evaluation.json")
    before = (tmp_path / "report/report.html").read_bytes()
    for name in ("report.html", "report.md"):
        (tmp_path / "report" / name).unlink()
    (tmp_path / "evaluation.json").unlink()
    assert ifkd(capsys, "report", "report/report.json")[0] == 0
    assert (tmp_path / "report/report.html").read_bytes() == before
    assert ifkd(capsys, "report", "report", "--out", "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere/report.html").read_bytes() == before


def test_a_failed_parity_ends_in_1_after_its_file_is_written(bundle, data, capsys, tmp_path):
    bundle.drifts["fp16"] = darken
    code, out, err = ifkd(capsys, "parity", "bundle", "--data", data)
    assert code == 1
    assert "score_factor" in err
    assert "FAILED" in out
    result = json.loads((tmp_path / "parity.json").read_text())
    assert [cell["passed"] for cell in result["cells"]] == [True, False]
    code, out, err = ifkd(capsys, "report", "--out", "report", "--parity", "parity.json")
    assert code == 1
    assert "scores are 0.900 times" in err
    assert (tmp_path / "report/report.html").is_file()
    code, out, _ = ifkd(capsys, "parity", "bundle", "--data", data, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


def test_tolerances_are_read_from_a_file(bundle, data, capsys, tmp_path):
    bundle.drifts["fp16"] = darken
    lenient = {
        "matched_fraction": 0.9, "score_max": 1, "score_p99": 1, "score_factor": 0.2, "iou_drift_p99": 0.5,
        "iou_drift_max": 0.5, "shift_px": 1, "mean_ap": 0.1, "ap50": 0.1, "ap75": 0.1,
    }  # fmt: skip
    text = "[fp16]\n" + "\n".join(f"{key} = {value}" for key, value in lenient.items())
    (tmp_path / "tolerances.toml").write_text(text)
    assert ifkd(capsys, "parity", "bundle", "--data", data, "--tolerances", "tolerances.toml")[0] == 0
    (tmp_path / "tolerances.toml").write_text(text.replace("shift_px", "shift"))
    code, _, err = ifkd(capsys, "parity", "bundle", "--data", data, "--tolerances", "tolerances.toml")
    assert code == 2
    assert "Did you mean 'shift_px'" in err


def test_the_option_json_prints_json(bundle, data, capsys):
    for command in (["evaluate"], ["bench", *QUICK], ["parity"]):
        code, out, _ = ifkd(capsys, command[0], "bundle", "--data", data, "--json", *command[1:])
        assert code == 0
        assert json.loads(out)["schema_version"] == 2


def test_bench_without_images_runs_on_noise(bundle, capsys, tmp_path):
    code, out, _ = ifkd(capsys, "bench", "bundle", *QUICK)
    assert code == 0
    assert "noise" in out
    assert json.loads((tmp_path / "bench.json").read_text())["tiles"]["kind"] == "noise"


def test_an_interrupted_bench_is_written(bundle, capsys, tmp_path, monkeypatch):
    original, calls = timing._take_turn, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(timing, "_take_turn", interrupted)
    assert ifkd(capsys, "bench", "bundle", *QUICK)[0] == 130
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["partial"] is True
    assert [cell["latency"]["runs"] for cell in result["cells"]] == [2, 1]


def test_torch_runs_in_fp32_only_by_default(bundle, capsys, tmp_path):
    ifkd(capsys, "bench", "bundle", "--backend", "onnxruntime", "torch", *QUICK)
    cells = json.loads((tmp_path / "bench.json").read_text())["cells"]
    assert [(cell["backend"], cell["precision"]) for cell in cells] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("torch", "fp32"),
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "nowhere"], "no such path"),
        (["evaluate", "bundle"], "--data"),
        (["evaluate", "bundle", "--data", "none.json"], "none.json"),
        (["evaluate", "bundle", "--batch", "0"], "--batch"),
        (["bench", "bundle", "--batch", "0"], "--batch"),
        (["bench", "bundle", "--seconds", "0"], "--seconds"),
        (["bench", "bundle", "--data", "none.json"], "none.json"),
        (["parity", "bundle"], "--data"),
        (["parity", "nowhere"], "nowhere"),
        (["report"], "--out"),
        (["report", "--out", "r"], "no results to report"),
        (["report", "--out", "r", "--evaluation", "x"], "NAME=PATH"),
        (["report", "--out", "r", "--evaluation", "a=none.json"], "none.json"),
        (["report", "--out", "r", "--bench", "bundle/model.json"], "ifkd bench"),
        (["report", "none/report.json"], "none/report.json"),
        (["report", "r/report.json", "--note", "x"], "unchanged"),
        (["report", "--out", "r", "--detection", "bundle"], "run.json"),
    ],
)
def test_invalid_arguments_end_in_2(bundle, capsys, words, expected):
    code, _, err = ifkd(capsys, *words)
    assert code == 2
    assert expected in err
    assert error_line(err)


def test_other_classes_are_named(bundle, capsys, tmp_path):
    path = fake.write_dataset(tmp_path / "other", classes=("tanker", "cargo", "ferry"))
    code, _, err = ifkd(capsys, "evaluate", "bundle", "--data", str(path))
    assert code == 2
    assert "ferry" in err
    assert "tug" in err


@pytest.mark.parametrize("command", ["evaluate", "bench", "parity"])
def test_data_of_other_classes_stops_every_command_before_it_measures(bundle, capsys, tmp_path, command):
    path = fake.write_dataset(tmp_path / "other", classes=("tanker", "cargo", "ferry"))
    code, out, err = ifkd(capsys, command, "bundle", "--data", str(path))
    assert (code, out) == (2, "")
    assert error_line(err)
    assert "'ferry'" in err
    assert "'tug'" in err
    assert "merge_classes" in err
    assert not (tmp_path / f"{command}.json").exists()


@pytest.mark.parametrize("command", ["bench", "parity"])
def test_a_precision_that_the_bundle_lacks_stops_the_command(bundle, data, capsys, tmp_path, command):
    code, out, err = ifkd(capsys, command, "bundle", "--data", data, "--precision", "int8", "fp32")
    assert (code, out) == (2, "")
    assert error_line(err)
    assert "got int8, expected some of fp32, fp16" in err
    assert not list(tmp_path.glob("*.json"))


def test_evaluate_names_the_precisions_that_a_bundle_has(whole_bundle, data, capsys, tmp_path, write_data_set):
    path = write_data_set(tmp_path / "d", images=1)
    path.write_text(path.read_text().replace("barge", "ship"))
    code, _, err = ifkd(capsys, "evaluate", str(whole_bundle), "--data", str(path), "--precision", "int8")
    assert code == 2
    assert error_line(err)
    assert "no ONNX file in int8" in err
    assert "fp16, fp32" in err


def test_one_image_is_enough(bundle, capsys, tmp_path):
    path = str(fake.write_dataset(tmp_path / "one", images=1))
    for words in (["evaluate"], ["bench", *QUICK], ["parity"]):
        assert ifkd(capsys, words[0], "bundle", "--data", path, *words[1:])[0] == 0
    assert json.loads((tmp_path / "bench.json").read_text())["stages"][0]["images"] == 1
    assert json.loads((tmp_path / "parity.json").read_text())["data"]["images"] == 1
    words = ["--evaluation", "a=evaluation.json", "--bench", "bench.json", "--parity", "parity.json"]
    assert ifkd(capsys, "report", "--out", "report", *words)[0] == 0


def blind(candidates):
    candidates.scores[:] = 0
    return candidates


def test_an_engine_without_detections_does_not_pass_parity(bundle, data, capsys, tmp_path):
    bundle.drifts.update(fp32=blind, fp16=blind)
    code, out, _ = ifkd(capsys, "evaluate", "bundle", "--data", data)
    assert code == 0
    assert "all 0.000 0.000 0.000 24" in " ".join(out.split())
    assert ifkd(capsys, "bench", "bundle", "--data", data, *QUICK)[0] == 0
    code, _, err = ifkd(capsys, "parity", "bundle", "--data", data)
    assert code == 1
    assert "the reference has no detections in these images, so there is nothing to compare" in error_line(err)
    words = ["--evaluation", "a=evaluation.json", "--bench", "bench.json", "--parity", "parity.json"]
    assert ifkd(capsys, "report", "--out", "report", *words)[0] == 1
    assert "nothing to compare" in (tmp_path / "report/report.html").read_text()


class Failing:
    """Candidates pass unchanged for some calls; then the error is raised."""

    def __init__(self, calls, error):
        self.left, self.error = calls, error

    def __call__(self, candidates):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return candidates


def test_a_late_failure_keeps_the_rest_of_the_bench(bundle, data, capsys, tmp_path):
    bundle.drifts["fp16"] = Failing(6, RuntimeError("out of memory\non line two"))
    code, out, err = ifkd(capsys, "bench", "bundle", "--data", data, *QUICK)
    assert code == 1
    words = "1 of 2 measurements failed. onnxruntime fp16 batch 1: RuntimeError: out of memory on line two"
    assert words in error_line(err)
    assert "aborted" in out
    result = json.loads((tmp_path / "bench.json").read_text())
    complete, failed = result["cells"]
    assert (complete["failure"], complete["latency"]["runs"]) == (None, 3)
    assert (failed["failure"], failed["latency"]["runs"]) == ("RuntimeError: out of memory\non line two", 2)
    assert [run["precision"] for run in result["stages"]] == ["fp32"]
    assert result["partial"] is False
    assert ifkd(capsys, "report", "--out", "report", "--bench", "bench.json")[0] == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "out of memory" in page
    assert "aborted, n=2" in page
    bundle.drifts["fp16"] = Failing(6, RuntimeError("out of memory"))
    code, out, _ = ifkd(capsys, "bench", "bundle", "--data", data, *QUICK, "--json")
    assert (code, json.loads(out)["cells"][1]["failure"]) == (1, "RuntimeError: out of memory")


def test_a_late_failure_keeps_the_rest_of_the_parity(bundle, data, capsys, tmp_path):
    bundle.drifts["fp16"] = Failing(1, RuntimeError("out of memory"))
    code, out, err = ifkd(capsys, "parity", "bundle", "--data", data, "--batch", "1")
    assert code == 1
    assert "onnxruntime fp16 failed to run (out of memory)" in error_line(err)
    assert "onnxruntime fp32: passed" in out
    complete, failed = json.loads((tmp_path / "parity.json").read_text())["cells"]
    assert (complete["passed"], failed["passed"], failed["failure"]) == (True, False, "out of memory")
    assert ifkd(capsys, "report", "--out", "report", "--parity", "parity.json")[0] == 1
    assert "failed to run: out of memory" in (tmp_path / "report/report.html").read_text()


def test_an_interrupted_parity_is_written_and_marked(bundle, data, capsys, tmp_path):
    bundle.drifts["fp16"] = Failing(1, KeyboardInterrupt())
    code, out, err = ifkd(capsys, "parity", "bundle", "--data", data, "--batch", "1")
    assert code == 130
    assert "Interrupted." in err
    assert "onnxruntime fp32: passed" in out
    result = json.loads((tmp_path / "parity.json").read_text())
    assert (result["partial"], result["passed"]) == (True, False)
    assert [cell["precision"] for cell in result["cells"]] == ["fp32"]
    assert result["verdict"] == "interrupted after 1 engines on images and 0 on the scene"
    assert ifkd(capsys, "report", "--out", "report", "--parity", "parity.json")[0] == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "No verdict" in page
    assert "Interrupted: not every engine was compared." in page
    assert "Interrupted" in (tmp_path / "report/report.md").read_text()


def test_an_early_interruption_of_parity_writes_no_file(bundle, data, capsys, tmp_path):
    bundle.drifts["fp32"] = Failing(1, KeyboardInterrupt())
    assert ifkd(capsys, "parity", "bundle", "--data", data, "--batch", "1")[0] == 130
    assert not (tmp_path / "parity.json").exists()


def test_an_interruption_of_stage_timing_keeps_the_latencies(bundle, data, capsys, tmp_path):
    bundle.drifts["fp16"] = Failing(9, KeyboardInterrupt())  # 1 after loading, 3 warm-ups, 3 samples, 2 of stages
    assert ifkd(capsys, "bench", "bundle", "--data", data, *QUICK)[0] == 130
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["partial"] is True
    assert [cell["latency"]["runs"] for cell in result["cells"]] == [3, 3]
    assert [run["precision"] for run in result["stages"]] == ["fp32"]

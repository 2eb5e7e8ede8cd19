import json

from fakes.fake_bundle import QUICK, Failing, error_line, run_command

from ifkd.core import timing


def test_bench_without_images_runs_on_noise(fake_bundle, capsys, tmp_path):
    code, out, _ = run_command(capsys, "bench", "bundle", *QUICK)
    assert code == 0
    assert "noise" in out
    assert json.loads((tmp_path / "bench.json").read_text())["tiles"]["kind"] == "noise"


def test_an_interrupted_bench_is_written(fake_bundle, capsys, tmp_path, monkeypatch):
    original, calls = timing._take_turn, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(timing, "_take_turn", interrupted)
    assert run_command(capsys, "bench", "bundle", *QUICK)[0] == 130
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["partial"] is True
    assert [cell["latency"]["runs"] for cell in result["cells"]] == [2, 1]


def test_torch_runs_in_fp32_only_by_default(fake_bundle, capsys, tmp_path):
    run_command(capsys, "bench", "bundle", "--backend", "onnxruntime", "torch", *QUICK)
    cells = json.loads((tmp_path / "bench.json").read_text())["cells"]
    assert [(cell["backend"], cell["precision"]) for cell in cells] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("torch", "fp32"),
    ]


def test_a_late_failure_keeps_the_rest_of_the_bench(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp16"] = Failing(6, RuntimeError("out of memory\non line two"))
    code, out, err = run_command(capsys, "bench", "bundle", "--data", data, *QUICK)
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
    assert run_command(capsys, "report", "--out", "report", "--bench", "bench.json")[0] == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "out of memory" in page
    assert "aborted, n=2" in page
    fake_bundle.drifts["fp16"] = Failing(6, RuntimeError("out of memory"))
    code, out, _ = run_command(capsys, "bench", "bundle", "--data", data, *QUICK, "--json")
    assert (code, json.loads(out)["cells"][1]["failure"]) == (1, "RuntimeError: out of memory")


def test_an_interruption_of_stage_timing_keeps_the_latencies(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp16"] = Failing(9, KeyboardInterrupt())  # 1 after loading, 3 warm-ups, 3 samples, 2 of stages
    assert run_command(capsys, "bench", "bundle", "--data", data, *QUICK)[0] == 130
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["partial"] is True
    assert [cell["latency"]["runs"] for cell in result["cells"]] == [3, 3]
    assert [run["precision"] for run in result["stages"]] == ["fp32"]


def test_a_scene_is_searched_without_and_with_the_screen(fake_bundle, screened_scene, capsys, tmp_path):
    code, out, _ = run_command(capsys, "bench", "bundle", *QUICK, "--scene", screened_scene, "--precision", "fp32")
    assert code == 0
    (search,) = json.loads((tmp_path / "bench.json").read_text())["screens"]
    assert (search["scene"], search["total"]["recall"], search["total"]["detections"]) == ("scene.tif", 1.0, 3)
    assert len(search["full_seconds"]) == len(search["screen_seconds"]) == 3
    assert search["screening"]["skipped"] > 0
    assert "with the screen on scene.tif: 100.00% of 3 detections" in out
    assert run_command(capsys, "report", "--out", "report", "--bench", "bench.json")[0] == 0
    for name in ("report.html", "report.md"):
        assert "Searches without and with the screen" in (tmp_path / "report" / name).read_text()


def test_a_scene_needs_a_screen(fake_bundle, capsys, tmp_path):
    code, _, err = run_command(capsys, "bench", "bundle", *QUICK, "--scene", "scene.tif")
    assert code == 2
    assert "The bundle has no screen with a calibrated threshold" in error_line(err)

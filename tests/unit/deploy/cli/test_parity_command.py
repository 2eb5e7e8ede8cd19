import json

from fakes.fake_bundle import QUICK, Failing, blind, darken, error_line, run_command


def test_a_failed_parity_ends_in_1_after_its_file_is_written(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp16"] = darken
    code, out, err = run_command(capsys, "parity", "bundle", "--data", data)
    assert code == 1
    assert "score_factor" in err
    assert "FAILED" in out
    result = json.loads((tmp_path / "parity.json").read_text())
    assert [cell["passed"] for cell in result["cells"]] == [True, False]
    code, out, err = run_command(capsys, "report", "--out", "report", "--parity", "parity.json")
    assert code == 1
    assert "scores are 0.900 times" in err
    assert (tmp_path / "report/report.html").is_file()
    code, out, _ = run_command(capsys, "parity", "bundle", "--data", data, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


def test_tolerances_are_read_from_a_file(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp16"] = darken
    lenient = {
        "matched_fraction": 0.9, "score_max": 1, "score_p99": 1, "score_factor": 0.2, "iou_drift_p99": 0.5,
        "iou_drift_max": 0.5, "shift_px": 1, "mean_ap": 0.1, "ap50": 0.1, "ap75": 0.1,
    }  # fmt: skip
    text = "[fp16]\n" + "\n".join(f"{key} = {value}" for key, value in lenient.items())
    (tmp_path / "tolerances.toml").write_text(text)
    assert run_command(capsys, "parity", "bundle", "--data", data, "--tolerances", "tolerances.toml")[0] == 0
    (tmp_path / "tolerances.toml").write_text(text.replace("shift_px", "shift"))
    code, _, err = run_command(capsys, "parity", "bundle", "--data", data, "--tolerances", "tolerances.toml")
    assert code == 2
    assert "Did you mean 'shift_px'" in err


def test_an_engine_without_detections_does_not_pass_parity(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts.update(fp32=blind, fp16=blind)
    code, out, _ = run_command(capsys, "evaluate", "bundle", "--data", data)
    assert code == 0
    assert "all 0.000 0.000 0.000 24" in " ".join(out.split())
    assert run_command(capsys, "bench", "bundle", "--data", data, *QUICK)[0] == 0
    code, _, err = run_command(capsys, "parity", "bundle", "--data", data)
    assert code == 1
    assert "the reference has no detections in these images, so there is nothing to compare" in error_line(err)
    words = ["--evaluation", "a=evaluation.json", "--bench", "bench.json", "--parity", "parity.json"]
    assert run_command(capsys, "report", "--out", "report", *words)[0] == 1
    assert "nothing to compare" in (tmp_path / "report/report.html").read_text()


def test_a_late_failure_keeps_the_rest_of_the_parity(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp16"] = Failing(1, RuntimeError("out of memory"))
    code, out, err = run_command(capsys, "parity", "bundle", "--data", data, "--batch", "1")
    assert code == 1
    assert "onnxruntime fp16 failed to run (out of memory)" in error_line(err)
    assert "onnxruntime fp32: passed" in out
    complete, failed = json.loads((tmp_path / "parity.json").read_text())["cells"]
    assert (complete["passed"], failed["passed"], failed["failure"]) == (True, False, "out of memory")
    assert run_command(capsys, "report", "--out", "report", "--parity", "parity.json")[0] == 1
    assert "failed to run: out of memory" in (tmp_path / "report/report.html").read_text()


def test_an_interrupted_parity_is_written_and_marked(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp16"] = Failing(1, KeyboardInterrupt())
    code, out, err = run_command(capsys, "parity", "bundle", "--data", data, "--batch", "1")
    assert code == 130
    assert "Interrupted." in err
    assert "onnxruntime fp32: passed" in out
    result = json.loads((tmp_path / "parity.json").read_text())
    assert (result["partial"], result["passed"]) == (True, False)
    assert [cell["precision"] for cell in result["cells"]] == ["fp32"]
    assert result["verdict"] == "interrupted after 1 engines on images and 0 on the scene"
    assert run_command(capsys, "report", "--out", "report", "--parity", "parity.json")[0] == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "No verdict" in page
    assert "Interrupted: not every engine was compared." in page
    assert "Interrupted" in (tmp_path / "report/report.md").read_text()


def test_an_early_interruption_of_parity_writes_no_file(fake_bundle, data, capsys, tmp_path):
    fake_bundle.drifts["fp32"] = Failing(1, KeyboardInterrupt())
    assert run_command(capsys, "parity", "bundle", "--data", data, "--batch", "1")[0] == 130
    assert not (tmp_path / "parity.json").exists()


def test_the_recall_of_the_screen_is_part_of_a_parity_on_a_scene(fake_bundle, data, screened_scene, capsys, tmp_path):
    code, out, _ = run_command(capsys, "parity", "bundle", "--data", data, "--scene", screened_scene)
    assert code == 0
    searches = json.loads((tmp_path / "parity.json").read_text())["screens"]
    assert len(searches) == 2
    assert all(one["per_class"]["tanker"]["recall"] == one["total"]["recall"] == 1.0 for one in searches)
    assert out.count("with the screen on scene.tif: 100.00% of 3 detections") == 2
    assert run_command(capsys, "report", "--out", "report", "--parity", "parity.json")[0] == 0
    assert "those without it are 100 %" in (tmp_path / "report/report.html").read_text()

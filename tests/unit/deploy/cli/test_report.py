import json

import pytest
from fakes import drifting_engine as fake
from fakes.fake_bundle import QUICK, error_line, run_command


def test_from_bundle_to_report(fake_bundle, data, capsys, tmp_path):
    code, out, _ = run_command(capsys, "evaluate", "bundle", "--data", data)
    assert code == 0
    assert "all 1.000 1.000 1.000 24" in " ".join(out.split())
    assert out.endswith("evaluation.json\n")
    code, out, _ = run_command(capsys, "bench", "bundle", "--data", data, "--batch", "1", "2", *QUICK)
    assert code == 0
    assert out.count("onnxruntime fp32") >= 2
    code, out, _ = run_command(capsys, "parity", "bundle", "--data", data)
    assert code == 0
    assert "onnxruntime fp16: passed: within all 12 tolerances" in out
    code, out, _ = run_command(
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


def test_a_report_is_rendered_again_from_its_file(fake_bundle, data, capsys, tmp_path):
    run_command(capsys, "evaluate", "bundle", "--data", data)
    run_command(capsys, "report", "--out", "report", "--evaluation", "student=evaluation.json")
    before = (tmp_path / "report/report.html").read_bytes()
    for name in ("report.html", "report.md"):
        (tmp_path / "report" / name).unlink()
    (tmp_path / "evaluation.json").unlink()
    assert run_command(capsys, "report", "report/report.json")[0] == 0
    assert (tmp_path / "report/report.html").read_bytes() == before
    assert run_command(capsys, "report", "report", "--out", "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere/report.html").read_bytes() == before


def test_the_option_json_prints_json(fake_bundle, data, capsys):
    for command in (["evaluate"], ["bench", *QUICK], ["parity"]):
        code, out, _ = run_command(capsys, command[0], "bundle", "--data", data, "--json", *command[1:])
        assert code == 0
        assert json.loads(out)["schema_version"] == 2


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
def test_invalid_arguments_end_in_2(fake_bundle, capsys, words, expected):
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert expected in err
    assert error_line(err)


@pytest.mark.parametrize("command", ["evaluate", "bench", "parity"])
def test_data_of_other_classes_stops_every_command_before_it_measures(fake_bundle, capsys, tmp_path, command):
    path = fake.write_dataset(tmp_path / "other", classes=("tanker", "cargo", "ferry"))
    code, out, err = run_command(capsys, command, "bundle", "--data", str(path))
    assert (code, out) == (2, "")
    assert error_line(err)
    assert "'ferry'" in err
    assert "'tug'" in err
    assert "merge_classes" in err
    assert not (tmp_path / f"{command}.json").exists()


@pytest.mark.parametrize("command", ["bench", "parity"])
def test_a_precision_that_the_bundle_lacks_stops_the_command(fake_bundle, data, capsys, tmp_path, command):
    code, out, err = run_command(capsys, command, "bundle", "--data", data, "--precision", "int8", "fp32")
    assert (code, out) == (2, "")
    assert error_line(err)
    assert "got int8, expected some of fp32, fp16" in err
    assert not list(tmp_path.glob("*.json"))


def test_one_image_is_enough(fake_bundle, capsys, tmp_path):
    path = str(fake.write_dataset(tmp_path / "one", images=1))
    for words in (["evaluate"], ["bench", *QUICK], ["parity"]):
        assert run_command(capsys, words[0], "bundle", "--data", path, *words[1:])[0] == 0
    assert json.loads((tmp_path / "bench.json").read_text())["stages"][0]["images"] == 1
    assert json.loads((tmp_path / "parity.json").read_text())["data"]["images"] == 1
    words = ["--evaluation", "a=evaluation.json", "--bench", "bench.json", "--parity", "parity.json"]
    assert run_command(capsys, "report", "--out", "report", *words)[0] == 0

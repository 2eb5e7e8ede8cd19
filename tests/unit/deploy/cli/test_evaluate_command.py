from fakes import drifting_engine as fake
from fakes.fake_bundle import error_line, run_command


def test_other_classes_are_named(fake_bundle, capsys, tmp_path):
    path = fake.write_dataset(tmp_path / "other", classes=("tanker", "cargo", "ferry"))
    code, _, err = run_command(capsys, "evaluate", "bundle", "--data", str(path))
    assert code == 2
    assert "ferry" in err
    assert "tug" in err


def test_evaluate_names_the_precisions_that_a_bundle_has(whole_bundle, data, capsys, tmp_path, write_data_set):
    path = write_data_set(tmp_path / "d", images=1)
    path.write_text(path.read_text().replace("barge", "ship"))
    code, _, err = run_command(capsys, "evaluate", str(whole_bundle), "--data", str(path), "--precision", "int8")
    assert code == 2
    assert error_line(err)
    assert "no ONNX file in int8" in err
    assert "fp16, fp32" in err

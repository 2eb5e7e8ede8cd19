import json

import numpy as np
import pytest

from deploy.accuracy.evaluated_model import count_parameters, open_model
from deploy.cli.main import main
from export.bundle.bundle import write_manifest
from ifkd.core.errors import CheckpointError, UsageError


def test_parameters_are_counted_from_the_header(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    tensors = {
        "body.conv.weight": np.zeros((4, 3, 2, 2), np.float32),
        "body.bn.weight": np.zeros(4, np.float32),
        "body.bn.running_mean": np.zeros(4, np.float32),
        "body.bn.running_var": np.zeros(4, np.float32),
        "body.bn.num_batches_tracked": np.zeros((), np.int64),
        "scale": np.zeros((), np.float32),
    }
    path = tmp_path / "w.safetensors"
    numpy_files.save_file(tensors, path, metadata={"ifkd": "{}"})
    assert count_parameters(path) == 48 + 4 + 1


@pytest.mark.parametrize("content", [b"", b"1234", b"\x40" + bytes(7) + b'{"a": {"sha', b"\x02" + bytes(7) + b"[]"])
def test_broken_weights_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="safetensors"):
        count_parameters(path)


def test_neither_checkpoint_nor_bundle_is_refused(tmp_path):
    for path, got in ((tmp_path, "model.json"), (tmp_path / "x.txt", "no such path"), (tmp_path / "y", "no such path")):
        with pytest.raises(UsageError, match=got):
            open_model(path)


def test_an_onnx_file_is_evaluated_with_the_settings_of_its_bundle(bundle_copy, tmp_path, write_data_set, capsys):
    manifest = bundle_copy.manifest
    defaults = manifest.defaults.model_copy(update={"overlap_px": 16})
    write_manifest(bundle_copy.path, manifest.model_copy(update={"defaults": defaults}))
    data = write_data_set(tmp_path, "test", images=2)
    content = json.loads(data.read_text())
    for category, name in zip(content["categories"], ("ship", "tug", "ferry"), strict=True):
        category["name"] = name
    data.write_text(json.dumps(content))
    words = ["--data", str(data), "--threads", "1", "--json", "--out"]
    results = []
    for model, more in ((bundle_copy.path / "model.fp16.onnx", []), (bundle_copy.path, ["--precision", "fp16"])):
        assert main(["evaluate", str(model), *words, str(tmp_path / "out.json"), *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["engine"] == results[1]["engine"]
    assert (results[0]["engine"]["precision"], results[0]["engine"]["file"]) == ("fp16", "model.fp16.onnx")
    assert results[0]["metrics"] == results[1]["metrics"]


def test_a_file_outside_of_a_bundle_is_refused(tmp_path, whole_bundle, capsys):
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert main(["evaluate", str(tmp_path / "a.onnx")]) == 2
    assert "is not a file of a bundle" in capsys.readouterr().err
    assert main(["evaluate", str(whole_bundle / "model.onnx"), "--backend", "torch"]) == 2


def test_operations_equal_those_counted_by_hooks(checkpoint_path):
    """A multiplication and an addition for each weight and output pixel of every convolution."""
    import torch

    from ifkd.models import normalize
    from ifkd.models.checkpoint import build_from, load_checkpoint

    counted = open_model(checkpoint_path).with_flops()
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

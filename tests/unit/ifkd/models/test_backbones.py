"""Backbones: torchvision's networks, their stages, their weights and what is frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from ifkd import recipe
from ifkd.core.errors import CheckpointError
from ifkd.models.backbones import STAGES, Backbone, StridedDepthwise


def backbone(stages: tuple[int, ...] = (0, 1, 2, 3), **options: Any) -> Backbone:
    return Backbone(recipe.DetectorOptions(**{"backbone": "resnet18", **options}), stages)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_strides_and_channels_of_the_stages(name: str) -> None:
    built = backbone(backbone=name).eval()
    with torch.no_grad():
        maps = built(torch.zeros(1, 3, 64, 96))
    assert list(maps) == ["c2", "c3", "c4", "c5"]
    for stage, found in enumerate(maps.values()):
        stride = 4 * 2**stage
        assert tuple(found.shape) == (1, built.out_channels[stage], 64 // stride, 96 // stride)
    assert built.out_channels == list(STAGES[name].values())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_weights_of_torchvision_give_torchvisions_features(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    built = backbone(backbone=name, backbone_weights=str(tmp_path / "weights.pth")).eval()
    seen = torch.randn(1, 3, 64, 64)
    report = built.report
    assert report is not None
    assert not report.missing
    assert not report.mismatched
    assert not report.unexpected
    assert report.loaded == len([key for key in network.state_dict() if not key.endswith("num_batches_tracked")])
    with torch.no_grad():
        ours = built(seen)["c5"]
        if name == "mobilenet_v2":
            theirs = network.features(seen)
        else:
            layers = [module for key, module in network.named_children() if key not in {"avgpool", "fc"}]
            theirs = nn.Sequential(*layers)(seen)
    torch.testing.assert_close(ours, theirs)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match=r"is not a resnet50: got \d+ tensors missing or of another shape"):
        backbone(backbone="resnet50", backbone_weights=str(tmp_path / "r18.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="got list, expected a dict of tensors"):
        backbone(backbone_weights=str(tmp_path / "list.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="is not a torchvision state dict"):
        backbone(backbone_weights=str(tmp_path / "text.pth"))
    with pytest.raises(CheckpointError, match="There are no weights at"):
        backbone(backbone_weights=str(tmp_path / "absent.pth"))


def test_the_error_of_a_failed_download_has_address_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CheckpointError) as caught:
        backbone(backbone_weights="imagenet")
    assert "no network" in str(caught.value)
    assert str(tmp_path / "checkpoints" / "resnet18-") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "stages", "first_learning"),
    [
        ("resnet18", 0, "conv1.weight"),
        ("resnet18", 1, "layer2.0.conv1.weight"),
        ("resnet18", 4, None),
        ("mobilenet_v2", 1, "4.conv.0.0.weight"),
        ("mobilenet_v2", 3, "14.conv.0.0.weight"),
    ],
)
def test_frozen_stages_are_a_prefix(name: str, stages: int, first_learning: str | None) -> None:
    built = backbone(backbone=name, frozen_stages=stages).train()
    learning = [key for key, parameter in built.named_parameters() if parameter.requires_grad]
    assert (learning[0] if learning else None) == first_learning
    for key, module in built.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == built.get_parameter(f"{key}.weight").requires_grad


def test_frozen_statistics_stay_frozen_in_synchronized_batch_norm() -> None:
    built = nn.SyncBatchNorm.convert_sync_batchnorm(backbone(norm="frozen", frozen_stages=1)).train()
    norms = [module for module in built.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 20
    assert not any(module.training for module in norms)


def test_frozen_stages_stay_frozen_with_synchronized_batch_norm() -> None:
    built = nn.SyncBatchNorm.convert_sync_batchnorm(backbone(frozen_stages=1)).train()
    norms = {key: module for key, module in built.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    assert {key.split(".")[0] for key, module in norms.items() if not module.training} == {"bn1", "layer1"}


def test_frozen_norm_keeps_statistics_and_trains_its_weights() -> None:
    built = backbone(norm="frozen").train()
    norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
    assert all(module.weight.requires_grad for module in norms)
    assert not built.eval().training


def test_strided_depthwise_layers_work_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    body = Backbone(recipe.DetectorOptions(backbone="mobilenet_v2", channels=16), stages=(3,))
    layers = [layer for layer in body.modules() if isinstance(layer, StridedDepthwise)]
    assert [layer.in_channels for layer in layers] == [96, 144, 192, 576]
    layer = layers[0]
    features = torch.randn(2, 96, 9, 12).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(features)
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    exact = features.detach().double().requires_grad_()
    weight = layer.weight.detach().double().requires_grad_()
    expected = functional.conv2d(exact, weight, stride=2, padding=1, groups=96)
    expected.sum().backward()
    assert torch.equal(found, expected.bfloat16())
    torch.testing.assert_close(features.grad, exact.grad.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-5)

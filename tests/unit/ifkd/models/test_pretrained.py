"""Weights of torchvision's detectors in ours: random weights, saved as torchvision saves them."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

from ifkd import recipe
from ifkd.core.config import parse
from ifkd.core.errors import CheckpointError, ConfigError
from ifkd.models import Detector, FasterRcnn, build_detector, pretrained
from ifkd.models.retinanet import RetinaNet

BUILDERS = {"retinanet": detection.retinanet_resnet50_fpn, "faster_rcnn": detection.fasterrcnn_resnet50_fpn}
COCO_CLASSES = 91
OLD_NAMES = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.0\.(weight|bias)$", r"\1.\2"),
    (r"^rpn\.head\.conv\.0\.0\.(weight|bias)$", r"rpn.head.conv.\1"),
)


class Published(NamedTuple):
    network: nn.Module
    path: Path


@pytest.fixture(scope="module", params=["retinanet", "faster_rcnn"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Return a torchvision detector for COCO with random batch-norm statistics, and its state dict on disk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BUILDERS[request.param](weights=None, weights_backbone=None, num_classes=COCO_CLASSES).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("published") / f"{request.param}.pth"
    torch.save(network.state_dict(), path)
    return Published(network, path)


def family(published: Published) -> str:
    return published.path.stem


def build(name: str, weights: object, *, classes: int = 4, **options: Any) -> Detector:
    settings = {"family": name, "backbone": "resnet50", "weights": str(weights), **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_detector(recipe.DetectorOptions(**settings), classes)


def head_logits(network: Any, pyramid: list[Tensor]) -> list[Tensor]:
    """Return the outputs of heads that do not depend on the classes."""
    if hasattr(network, "rpn"):
        return [*network.rpn.head(pyramid)[0], *network.rpn.head(pyramid)[1]]
    return [network.head.regression_head.bbox_reg(network.head.regression_head.conv(level)) for level in pyramid]


def test_matching_tensors_are_loaded_and_others_reported(published: Published) -> None:
    built = build(family(published), published.path).eval()
    initial = build(family(published), "none")
    (report,) = built.load_reports
    expected = {
        "retinanet": [
            "backbone.fpn.extra_blocks.p6.weight 256x256x3x3, here 256x2048x3x3",
            "head.classification_head.cls_logits.bias 819, here 36",
            "head.classification_head.cls_logits.weight 819x256x3x3, here 36x256x3x3",
        ],
        "faster_rcnn": [
            "roi_heads.box_predictor.bbox_pred.bias 364, here 20",
            "roi_heads.box_predictor.bbox_pred.weight 364x1024, here 20x1024",
            "roi_heads.box_predictor.cls_score.bias 91, here 5",
            "roi_heads.box_predictor.cls_score.weight 91x1024, here 5x1024",
        ],
    }[family(published)]
    assert list(report.mismatched) == expected
    assert report.missing == report.unexpected == ()
    mismatched = {text.split(" ")[0] for text in expected}
    ours, theirs, began = built.state_dict(), published.network.state_dict(), initial.state_dict()
    names = {name for name in ours if not name.endswith("num_batches_tracked")}
    assert report.loaded == len(names - mismatched)
    assert all(torch.equal(ours[name], theirs[name]) for name in names - mismatched)
    assert all(torch.equal(ours[name], began[name]) for name in mismatched)
    assert all(f"  {name} " in str(report) for name in mismatched)
    seen = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pyramid = [*built(seen).pyramid[:3]]
        reference = [*published.network.backbone(seen).values()][:3]  # type: ignore[operator,union-attr]
        torch.testing.assert_close(pyramid, reference)
        torch.testing.assert_close(head_logits(built, pyramid), head_logits(published.network, reference))


def test_names_of_old_files_are_translated_as_torchvision_does(published: Published, tmp_path: Path) -> None:
    old = {}
    for name, value in published.network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        renamed = name
        for pattern, replacement in OLD_NAMES:
            renamed = re.sub(pattern, replacement, renamed)
        renamed = re.sub(
            r"^(head\.\w+_head\.conv)\.(\d)\.0\.(\w+)$", lambda m: f"{m[1]}.{2 * int(m[2])}.{m[3]}", renamed
        )
        old[renamed] = value
    assert len(old.keys() - published.network.state_dict().keys()) >= 18
    # torchvision's own classes load the file: these are the old names.
    other = BUILDERS[family(published)](weights=None, weights_backbone=None, num_classes=COCO_CLASSES)
    assert not other.load_state_dict(dict(old), strict=False).unexpected_keys
    torch.save(old, tmp_path / "old.pth")
    today, translated = (build(family(published), path) for path in (published.path, tmp_path / "old.pth"))
    assert translated.load_reports[0].mismatched == today.load_reports[0].mismatched
    assert translated.load_reports[0].missing == translated.load_reports[0].unexpected == ()
    first, second = today.state_dict(), translated.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_heads_for_the_same_number_of_classes_are_loaded(published: Published) -> None:
    classes = COCO_CLASSES - (family(published) == "faster_rcnn")
    (report,) = build(family(published), published.path, classes=classes).load_reports
    assert len(report.mismatched) == (family(published) == "retinanet")  # P6 alone


def test_a_narrower_pyramid_is_initialized_and_the_backbone_is_loaded(published: Published) -> None:
    built = build(family(published), published.path, channels=32)
    (report,) = built.load_reports
    assert isinstance(built, FasterRcnn | RetinaNet)
    body = {name for name in built.backbone.body.state_dict() if not name.endswith("num_batches_tracked")}
    assert not [text for text in report.mismatched if text.startswith("backbone.body.")]
    assert report.loaded >= len(body)
    assert any(text.startswith("backbone.fpn.inner_blocks.0.0.weight 256x") for text in report.mismatched)


def test_a_detector_with_another_backbone_is_refused(published: Published) -> None:
    with pytest.raises(CheckpointError, match=r"is not a \w+ with resnet18: got \d+ tensors missing or of another"):
        build(family(published), published.path, backbone="resnet18")


def test_weights_of_a_classifier_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match="is not a faster_rcnn with resnet18"):
        build("faster_rcnn", tmp_path / "r18.pth", backbone="resnet18")
    with pytest.raises(CheckpointError, match=r"There are no weights at .*absent.pth. Check detector.weights"):
        build("faster_rcnn", tmp_path / "absent.pth")


def test_coco_weights_are_read_from_torchvisions_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Published
) -> None:
    name = family(published)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / pretrained.COCO[name].url.rsplit("/", 1)[1]
    place.parent.mkdir()
    place.write_bytes(published.path.read_bytes())
    built = build(name, "coco")
    assert built.load_reports[0].source == str(place)
    assert built.load_reports[0].sha256 == hashlib.sha256(published.path.read_bytes()).hexdigest()
    assert built.load_reports[0].to_provenance()["mismatched"] == list(built.load_reports[0].mismatched)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_the_error_of_a_failed_download_has_address_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CheckpointError) as caught:
        build(name, "coco")
    message = str(caught.value)
    assert f"The COCO weights of {name} with resnet50 cannot be downloaded (no network)" in message
    url = pretrained.COCO[name].url  # type: ignore[index]
    assert f"Download {url} to {tmp_path / 'checkpoints' / url.rsplit('/', 1)[1]}, or set a path as weights." in message


def test_a_download_is_checked_by_the_digest_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Published
) -> None:
    class Elsewhere(NamedTuple):
        url: str

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    digest = hashlib.sha256(published.path.read_bytes()).hexdigest()[:8]
    for stated, right in ((digest, True), ("00000000", False)):
        source = published.path.with_name(f"net-{stated}.pth")
        source.write_bytes(published.path.read_bytes())
        if right:
            assert pretrained.download_weights(Elsewhere(source.as_uri()), "weights", "weights").read_bytes()
        else:
            with pytest.raises(CheckpointError, match="invalid hash value"):
                pretrained.download_weights(Elsewhere(source.as_uri()), "weights", "weights")
            assert not (tmp_path / "checkpoints" / source.name).exists()


def test_coco_weights_exist_for_a_resnet50_alone() -> None:
    with pytest.raises(ConfigError, match='weights = "coco" exist only for resnet50; the backbone is resnet18'):
        parse({"backbone": "resnet18", "weights": "coco"}, recipe.DetectorOptions, source="values")

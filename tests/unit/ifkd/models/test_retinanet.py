"""RetinaNet against torchvision's own, and its losses against a slow plain reading of their definitions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from ifkd import recipe
from ifkd.core.detections import Candidates
from ifkd.core.oriented_boxes import canonical, envelopes
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.models import DetectorOutput, Targets, build_detector, normalize
from ifkd.models.anchors import ASPECT_RATIOS, anchors_of_level
from ifkd.models.box_decoding import concat_predictions
from ifkd.models.retinanet import RetinaNet

STRIDES = (8, 16, 32, 64, 128)
CLASSES = 3
SCALES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))


def detector(classes: int = CLASSES, **options: Any) -> RetinaNet:
    settings: dict[str, Any] = {"backbone": "resnet18", "channels": 16, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_detector(recipe.DetectorOptions(**settings), classes)
    assert isinstance(built, RetinaNet)
    return built


def images(size: tuple[int, int], batch: int = 2, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randint(0, 256, (batch, 3, *size), generator=source, dtype=torch.uint8))


def varied(size: tuple[int, int], batch: int = 2) -> tuple[RetinaNet, DetectorOutput]:
    """Return a detector with a random head, whose scores and deltas vary widely, and its outputs."""
    built = detector().eval()
    logits, deltas = built.head.classification_head.cls_logits, built.head.regression_head.bbox_reg
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in built.head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        output = built(images(size, batch))
        logits.weight.mul_(2 / output.logits[0].std())
        deltas.weight.mul_(0.5 / output.deltas[0].std())
        nn.init.constant_(logits.bias, -4.0)
        return built, built(images(size, batch))


# --- torchvision's names, anchors and postprocessing --------------------------------------------------------------


def test_parameters_are_torchvisions_by_name_and_shape() -> None:
    with torch.device("meta"):
        ours = build_detector(recipe.DetectorOptions(backbone="resnet50"), 91).state_dict()
        theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    assert list(ours) == list(theirs)
    different = {name for name in ours if ours[name].shape != theirs[name].shape}
    # P6 is computed from C5 in MMDetection and the paper, from P5 in torchvision.
    assert different == {"backbone.fpn.extra_blocks.p6.weight"}
    assert tuple(ours["backbone.fpn.extra_blocks.p6.weight"].shape) == (256, 2048, 3, 3)


@pytest.mark.parametrize("anchor_scale", [None, 4, 2.5])
@pytest.mark.parametrize("size", [(128, 128), (128, 256), (384, 128)])
def test_anchors_are_torchvisions_where_the_map_divides_the_image(size: tuple[int, int], anchor_scale: Any) -> None:
    options = recipe.DetectorOptions(backbone="resnet18", channels=16, anchor_scale=anchor_scale)
    built = build_detector(options, CLASSES)
    smallest = [(anchor_scale or 4.0) * stride for stride in STRIDES]
    sizes = tuple((side, side * 2 ** (1 / 3), side * 2 ** (2 / 3)) for side in smallest)
    generator = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(STRIDES))
    maps = [torch.zeros(1, 1, size[0] // stride, size[1] // stride) for stride in STRIDES]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    ours = built.anchors(DetectorOutput((), tuple(maps), ()))
    torch.testing.assert_close(torch.cat(ours), theirs, rtol=0, atol=0)


def test_anchors_have_their_sizes_and_ratios() -> None:
    anchors = anchors_of_level(32, (1, 2), torch.device("cpu"), scales=SCALES)
    assert anchors.shape == (18, 4)
    extents = anchors[:9, 2:] - anchors[:9, :2]
    for index, (width, height) in enumerate(extents.tolist()):
        side, ratio = 32 * 4 * 2 ** (index % 3 / 3), ASPECT_RATIOS[index // 3]
        assert math.sqrt(width * height) == pytest.approx(side, rel=0.02)
        assert height / width == pytest.approx(ratio, rel=0.02)
    torch.testing.assert_close(anchors[9:] - anchors[:9], torch.tensor([32.0, 0.0, 32.0, 0.0]).expand(9, 4))


@pytest.mark.parametrize("size", [(128, 128), (128, 256)])
def test_detections_are_torchvisions(size: tuple[int, int]) -> None:
    built, output = varied(size)
    counts = [level.shape[2] * level.shape[3] * 9 for level in output.logits]
    pyramid = list(output.pyramid)
    with torch.no_grad():
        head_outputs = {
            "cls_logits": list(built.head.classification_head(pyramid).split(counts, dim=1)),
            "bbox_regression": list(built.head.regression_head(pyramid).split(counts, dim=1)),
        }
    # Only the postprocessing is compared; the anchors are equal, as tested above.
    trunk = nn.Conv2d(3, 16, 1)
    trunk.out_channels = 16  # type: ignore[assignment]
    reference = TorchvisionRetinaNet(
        trunk, CLASSES, score_thresh=0.05, nms_thresh=0.5, detections_per_img=300, topk_candidates=1000
    )
    anchors = [built.anchors(output) for _ in range(2)]
    theirs = reference.postprocess_detections(head_outputs, anchors, [size, size])
    with torch.no_grad():
        boxes, scores, labels = built.candidates(output, size=size, per_level=1000)
    candidates = Candidates(boxes.numpy(), scores.numpy(), labels.numpy())
    ours = postprocess(candidates, PostprocessConfig(max_detections=300))
    for found, expected in zip(ours, theirs, strict=True):
        assert len(found) == len(expected["scores"]) > 50
        for label in range(CLASSES):
            chosen = expected["labels"].numpy() == label
            mine = found.select(found.labels == label)
            rows = np.column_stack([mine.boxes, 1000 * mine.scores])
            others = np.column_stack([expected["boxes"].numpy()[chosen], 1000 * expected["scores"].numpy()[chosen]])
            assert len(rows) == len(others)
            _, partner = linear_sum_assignment(np.abs(rows[:, None] - others[None]).sum(axis=2))
            np.testing.assert_allclose(mine.boxes, expected["boxes"].numpy()[chosen][partner], rtol=0, atol=1e-3)
            np.testing.assert_allclose(mine.scores, expected["scores"].numpy()[chosen][partner], rtol=0, atol=1e-5)


def test_the_number_of_candidates_depends_on_the_size_alone() -> None:
    built, output = varied((128, 192))
    boxes, scores, labels = built.candidates(output, size=(128, 192), per_level=200)
    pairs = [level.shape[2] * level.shape[3] * 9 * CLASSES for level in output.logits]
    expected = sum(min(200, count) for count in pairs)
    assert boxes.shape == (2, expected, 4)
    assert scores.shape == labels.shape == (2, expected)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((labels >= 0) & (labels < CLASSES)).all()
    assert (boxes.amin() >= 0) & (boxes[..., 0::2].amax() <= 192) & (boxes[..., 1::2].amax() <= 128)
    assert (boxes[..., 2:] >= boxes[..., :2]).all()


# --- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_levels_of_the_pyramid(backbone: str) -> None:
    built = detector(backbone=backbone).eval()
    with torch.no_grad():
        output = built(images((96, 160)))
    assert [tuple(level.shape[1:]) for level in output.pyramid] == [
        (16, 12, 20),
        (16, 6, 10),
        (16, 3, 5),
        (16, 2, 3),
        (16, 1, 2),
    ]
    assert {level.shape[1] for level in output.logits} == {9 * CLASSES}
    assert {level.shape[1] for level in output.deltas} == {36}


def test_a_new_detector_predicts_background() -> None:
    with torch.no_grad():
        output = detector().eval()(images((64, 64)))
    probability = torch.cat([level.flatten() for level in output.logits]).sigmoid()
    assert probability.mean().item() == pytest.approx(0.01, rel=0.2)


def test_kaiming_initialization_keeps_the_signal_of_a_narrow_head() -> None:
    sizes = {}
    for head_init in ("normal", "kaiming"):
        branch = detector(head_init=head_init).head.classification_head
        signal = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            sizes[head_init] = branch.conv(signal).std().item()
        assert branch.cls_logits.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert branch.cls_logits.bias.detach().sigmoid().mean().item() == pytest.approx(0.01)
    assert sizes["normal"] < 0.01
    assert 0.2 < sizes["kaiming"] < 2


def test_initialization_is_deterministic() -> None:
    first, second = detector().state_dict(), detector().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_normalized_images_have_imagenets_statistics() -> None:
    pixels = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert normalize(pixels).abs().max() < 0.02
    white = normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist()
    assert white == pytest.approx([(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375])


# --- losses ---------------------------------------------------------------------------------------------------------


def target(boxes: Sequence[Sequence[float]], labels: Sequence[int], ignored: Sequence[Sequence[float]] = ()) -> Targets:
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
    )


def slow_iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_assignment(anchors: list[list[float]], targets: Targets) -> list[int | None]:
    """Return the object of each anchor, -1 for background, None for ignored ones (MMDetection's rules)."""
    objects = targets.boxes.tolist()
    overlaps = [[slow_iou(box, anchor) for anchor in anchors] for box in objects]
    matches: list[int | None] = []
    for index, anchor in enumerate(anchors):
        column = [row[index] for row in overlaps]
        best = max(range(len(column)), key=column.__getitem__) if column else -1
        iou = column[best] if column else 0.0
        claimants = [number for number, row in enumerate(overlaps) if row[index] == max(row) > 0]
        if claimants:
            matches.append(claimants[-1])
        elif iou >= 0.5:
            matches.append(best)
        elif iou >= 0.4:
            matches.append(None)
        else:
            hidden = False
            for region in targets.ignored.tolist():
                width = min(anchor[2], region[2]) - max(anchor[0], region[0])
                height = min(anchor[3], region[3]) - max(anchor[1], region[1])
                area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
                hidden |= width > 0 and height > 0 and width * height > 0.5 * area
            matches.append(None if hidden else -1)
    return matches


def slow_losses(built: RetinaNet, output: DetectorOutput, targets: list[Targets]) -> tuple[float, float, int]:
    """Return focal loss and L1 on deltas over the positives, and their number, one anchor and class at a time."""
    focal, l1, positives = 0.0, 0.0, 0
    for image, one in enumerate(targets):
        anchors, logits, deltas = [], [], []
        for level, stride in enumerate(STRIDES):
            _, _, height, width = output.logits[level].shape
            anchors += anchors_of_level(stride, (height, width), torch.device("cpu"), scales=SCALES).tolist()
            for row in range(height):
                for column in range(width):
                    for anchor in range(9):
                        cell = output.logits[level][image, :, row, column].double()
                        logits.append(cell[anchor * CLASSES : (anchor + 1) * CLASSES].tolist())
                        cell = output.deltas[level][image, :, row, column].double()
                        deltas.append(cell[anchor * 4 : anchor * 4 + 4].tolist())
        for anchor, match, scores, delta in zip(anchors, slow_assignment(anchors, one), logits, deltas, strict=True):
            if match is None:
                continue
            for label, logit in enumerate(scores):
                right = match >= 0 and int(one.labels[match]) == label
                p = 1 / (1 + math.exp(-logit)) if right else 1 / (1 + math.exp(logit))
                focal += (0.25 if right else 0.75) * (1 - p) ** 2 * -math.log(p)
            if match >= 0:
                positives += 1
                x1, y1, x2, y2 = one.boxes[match].tolist()
                w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
                shift_x = ((x1 + x2) / 2 - (anchor[0] + anchor[2]) / 2) / w
                shift_y = ((y1 + y2) / 2 - (anchor[1] + anchor[3]) / 2) / h
                encoded = (shift_x, shift_y, math.log((x2 - x1) / w), math.log((y2 - y1) / h))
                l1 += sum(abs(a - b) for a, b in zip(encoded, delta, strict=True))
    return focal / max(1, positives), l1 / max(1, positives), positives


TARGETS = (
    target([[4, 6, 40, 34], [30, 20, 62, 60], [33, 24, 64, 63]], [0, 2, 1]),
    # A narrow object with an IoU below 0.5 with all anchors is assigned its best ones.
    target([[10, 50, 16, 63]], [1], [[0, 0, 64, 40]]),
    target([], []),
    target([], [], [[0, 0, 64, 64]]),
    # Both objects have the same best anchor.
    target([[18, 18, 46, 46], [20, 20, 45, 45]], [2, 0]),
)


def test_losses_equal_their_definitions() -> None:
    built = detector()
    output = built(images((64, 64), batch=len(TARGETS)))
    losses = built.task_losses(output, list(TARGETS))
    focal, l1, positives = slow_losses(built, output, list(TARGETS))
    assert positives > 8
    assert losses["classification"].item() == pytest.approx(focal, rel=1e-4)
    assert losses["boxes"].item() == pytest.approx(l1, rel=1e-4)


def test_losses_of_parts_of_a_batch_average_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    built = detector().eval()
    output = built(images((64, 64)))
    targets = [TARGETS[0], TARGETS[1]]
    total = built.task_losses(output, targets)
    counts: list[Tensor] = []

    def part(image: int) -> dict[str, Tensor]:
        maps = (output.pyramid, output.logits, output.deltas)
        cut = DetectorOutput(*(tuple(level[image : image + 1] for level in levels) for levels in maps))
        return built.task_losses(cut, targets[image : image + 1])

    def count(value: Tensor) -> Tensor:
        counts.append(value)
        return value

    monkeypatch.setattr("ifkd.models.retinanet.mean_over_ranks", count)
    assert part(0)["boxes"] != part(1)["boxes"]
    assert counts[0] != counts[1]
    mean = torch.stack(counts).mean()
    monkeypatch.setattr("ifkd.models.retinanet.mean_over_ranks", lambda _: mean)
    parts = [part(0), part(1)]
    for term, value in total.items():
        torch.testing.assert_close(torch.stack([one[term] for one in parts]).mean(), value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_of_background_are_divided_by_one_over_all_ranks(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    built = detector().eval()
    background = [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    output = built(images((64, 64), batch=1))
    alone = built.task_losses(output, background)
    monkeypatch.setattr("ifkd.models.retinanet.world_size", lambda: ranks, raising=False)
    torch.testing.assert_close(built.task_losses(output, background)["classification"], ranks * alone["classification"])


def test_every_object_is_assigned_an_anchor() -> None:
    built = detector()
    output = built(images((64, 64), batch=1))
    anchors = torch.cat(built.anchors(output)).tolist()
    for box in ([1, 1, 4, 3], [0, 0, 64, 64], [10, 30, 60, 34]):
        assert 0 in slow_assignment(anchors, target([box], [0]))
        losses = built.task_losses(output, [target([box], [0])])
        assert losses["boxes"].item() > 0


def test_images_without_objects_have_finite_losses() -> None:
    built = detector()
    losses = built.task_losses(built(images((64, 64))), [target([], []), target([], [])])
    assert losses["boxes"].item() == 0.0
    assert 0 < losses["classification"].item() < 100
    sum(losses.values()).backward()  # type: ignore[union-attr]
    gradients = [parameter.grad for parameter in built.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_ignored_regions_have_no_gradient() -> None:
    built = detector()
    output = built(images((128, 128), batch=1))
    logits = [level.detach().requires_grad_() for level in output.logits]
    seen = DetectorOutput(output.pyramid, tuple(logits), output.deltas)
    built.task_losses(seen, [target([], [], [[0, 0, 64, 128]])])["classification"].backward()
    finest = logits[0].grad
    assert finest is not None
    # At stride 8 the anchors are 32 to 51 pixels: around (32, 64) all are mostly in the left half, at (120, 64) none.
    assert (finest[0, :, 8, 4] == 0).all()
    assert (finest[0, :, 8, 15] != 0).all()


def test_frozen_parts_do_not_change_in_a_training_step() -> None:
    built = detector(frozen_stages=2, norm="frozen").train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    losses = built.task_losses(built(images((64, 64))), [TARGETS[0], TARGETS[2]])
    (losses["classification"] + losses["boxes"]).backward()
    optimizer.step()
    changed = {name for name, value in built.state_dict().items() if not torch.equal(value, before[name])}
    frozen = ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1", "backbone.body.layer2")
    assert not {name for name in changed if name.startswith(frozen)}
    assert not {name for name in changed if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert "backbone.body.layer3.0.conv1.weight" in changed
    assert "backbone.body.layer4.0.bn1.weight" in changed
    assert {name for name in before if name.startswith(("head", "backbone.fpn"))} <= changed


def test_nothing_is_frozen_by_default() -> None:
    built = detector().train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1, weight_decay=0.1)
    losses = built.task_losses(built(images((64, 64))), [TARGETS[0], TARGETS[1]])
    (losses["classification"] + losses["boxes"]).backward()
    optimizer.step()
    assert [name for name, value in built.state_dict().items() if torch.equal(value, before[name])] == []


# --- oriented boxes -------------------------------------------------------------------------------------------------


def oriented_target(boxes: Sequence[Sequence[float]]) -> Targets:
    turned = canonical(np.array(boxes, np.float32))
    upright = torch.from_numpy(envelopes(turned))
    return Targets(upright, torch.zeros(len(boxes), dtype=torch.int64), torch.zeros(0, 4), torch.from_numpy(turned))


def test_an_oriented_detector_has_one_delta_more_and_an_upright_one_none() -> None:
    turned, upright = detector(oriented=True).state_dict(), detector().state_dict()
    different = {name for name in upright if upright[name].shape != turned[name].shape}
    assert list(turned) == list(upright)
    assert different == {"head.regression_head.bbox_reg.weight", "head.regression_head.bbox_reg.bias"}
    assert turned["head.regression_head.bbox_reg.bias"].shape == (45,)


def test_an_upright_detector_ignores_oriented_boxes() -> None:
    built, one = detector().eval(), oriented_target([[30, 30, 40, 10, 30]])
    output = built(images((64, 64), batch=1))
    losses = built.task_losses(output, [one])
    assert set(losses) == {"classification", "boxes"}
    plain = built.task_losses(output, [Targets(one.boxes, one.labels, one.ignored)])
    assert all(torch.equal(losses[name], plain[name]) for name in plain)
    assert len(built.candidates(output, size=(64, 64), per_level=10)) == 3


def test_an_oriented_detector_learns_the_angle() -> None:
    built = detector(oriented=True, head_init="kaiming", norm="frozen").train()
    pixels, one = images((64, 64), batch=1), oriented_target([[30, 34, 44, 12, 150]])
    optimizer = torch.optim.Adam(built.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        losses = built.task_losses(built(pixels), [one])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert history[-1]["divergence"] < 0.2 < history[0]["divergence"] < 1
    with torch.no_grad():
        output = built(pixels)
    anchors, deltas = torch.cat(built.anchors(output)), concat_predictions(output.deltas, 9)[0]
    positive = built.assign_anchors(anchors, one) == 0
    _, oriented = built.decode(anchors[positive], deltas[positive], None)
    assert np.median(np.abs(oriented[:, 4].numpy() - 150)) < 5

"""Faster R-CNN against torchvision's, and its own assignment and sampling."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from ifkd import recipe
from ifkd.core.detections import Candidates
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.models import DetectorOutput, FasterRcnn, Targets, build_detector, normalize
from ifkd.models.faster_rcnn import POST_NMS_TOP_N, PRE_NMS_TOP_N
from ifkd.models.roi_head import RoiTargets

CLASSES, CHANNELS, WIDTH = 3, 16, 32
SIZE = (128, 192)


def detector(**options: Any) -> FasterRcnn:
    settings: dict[str, Any] = {
        "family": "faster_rcnn",
        "backbone": "resnet18",
        "channels": CHANNELS,
        "box_head_width": WIDTH,
        "proposals": 60,
        **options,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_detector(recipe.DetectorOptions(**settings), CLASSES)
    assert isinstance(built, FasterRcnn)
    return built


def images(size: tuple[int, int] = SIZE, batch: int = 2) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return normalize(torch.randint(0, 256, (batch, 3, *size), generator=source, dtype=torch.uint8))


def varied(size: tuple[int, int] = SIZE, **options: Any) -> tuple[FasterRcnn, DetectorOutput]:
    """Return a detector with random heads, whose scores and deltas vary widely, and its outputs."""
    built = detector(**options).eval()
    head, predictor = built.rpn.head, built.roi_heads.box_predictor
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in (*built.rpn.modules(), *built.roi_heads.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        output = built(images(size))
        head.cls_logits.weight.mul_(2 / output.logits[0].std())
        head.bbox_pred.weight.mul_(0.3 / output.deltas[0].std())
        output = built(images(size))
        boxes = built.proposals(output, size=size, pre_nms_top_n=100, post_nms_top_n=100)
        logits, deltas = built.roi_heads(output.pyramid, boxes, size)
        predictor.cls_score.weight.mul_(2 / logits.std())
        predictor.bbox_pred.weight.mul_(2 / deltas.std())
    return built, output


def target(boxes: Sequence[Sequence[float]], labels: Sequence[int], ignored: Sequence[Sequence[float]] = ()) -> Targets:
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
    )


TARGETS = [
    target([[4, 6, 60, 34], [100, 60, 170, 120], [70, 10, 110, 50]], [0, 2, 1]),
    target([[20, 20, 150, 110]], [1]),
]


def reference(ours: FasterRcnn, **options: Any) -> TorchvisionFasterRCNN:
    """Return torchvision's Faster R-CNN with our heads' weights and settings."""
    smallest = (ours.config.anchor_scale or 8) * 4
    sizes = tuple((smallest * 2**level,) for level in range(5))
    trunk = nn.Conv2d(3, CHANNELS, 1)
    trunk.out_channels = CHANNELS  # type: ignore[assignment]
    theirs = TorchvisionFasterRCNN(
        trunk,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(CHANNELS * 49, WIDTH),
        box_predictor=None,
        num_classes=CLASSES + 1,
        rpn_pre_nms_top_n_train=PRE_NMS_TOP_N,
        rpn_post_nms_top_n_train=POST_NMS_TOP_N,
        rpn_pre_nms_top_n_test=ours.config.proposals,
        rpn_post_nms_top_n_test=ours.config.proposals,
        **options,
    )
    theirs.roi_heads.box_predictor = type(ours.roi_heads.box_predictor)(WIDTH, CLASSES + 1)
    for name in ("rpn", "roi_heads"):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    return theirs


def their_view(output: DetectorOutput, size: tuple[int, int] = SIZE) -> tuple[ImageList, OrderedDict[str, Tensor]]:
    names = ("0", "1", "2", "3", "pool")
    return ImageList(images(size), [size, size]), OrderedDict(zip(names, output.pyramid, strict=True))


def their_targets(offset: int) -> list[dict[str, Tensor]]:
    return [{"boxes": one.boxes, "labels": one.labels + offset} for one in TARGETS]


# --- against torchvision --------------------------------------------------------------------------------------------


def test_parameters_are_torchvisions_by_name_and_shape() -> None:
    with torch.device("meta"):
        ours = build_detector(recipe.DetectorOptions(family="faster_rcnn", backbone="resnet50"), 90).state_dict()
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_levels_of_the_pyramid(backbone: str) -> None:
    built = detector(backbone=backbone).eval()
    with torch.no_grad():
        output = built(images((96, 160)))
    assert [tuple(level.shape[1:]) for level in output.pyramid] == [
        (CHANNELS, 24, 40),
        (CHANNELS, 12, 20),
        (CHANNELS, 6, 10),
        (CHANNELS, 3, 5),
        (CHANNELS, 2, 3),
    ]
    assert {level.shape[1] for level in output.logits} == {3}
    assert {level.shape[1] for level in output.deltas} == {12}
    torch.testing.assert_close(output.pyramid[4], output.pyramid[3][:, :, ::2, ::2])
    assert len(built.config.levels) == len(output.pyramid)


@pytest.mark.parametrize(("proposals", "anchor_scale"), [(60, None), (1000, None), (1000, 4)])
def test_proposals_are_torchvisions(proposals: int, anchor_scale: float | None) -> None:
    built, output = varied((128, 256), proposals=proposals, anchor_scale=anchor_scale)
    theirs = reference(built).eval()
    view, features = their_view(output, (128, 256))
    with torch.no_grad():
        expected, _ = theirs.rpn(view, features)
        anchors = theirs.rpn.anchor_generator(view, list(features.values()))[0]
        found = built.proposals(output, size=(128, 256), pre_nms_top_n=proposals, post_nms_top_n=proposals)
    torch.testing.assert_close(torch.cat(built.anchors(output)), anchors, rtol=0, atol=0)
    for mine, other in zip(found, expected, strict=True):
        assert len(mine) > 50
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-3)


def test_losses_are_torchvisions_with_plain_l1(monkeypatch: pytest.MonkeyPatch) -> None:
    # No object is assigned an anchor that overlaps another object more; there the implementations differ.
    built, output = varied((128, 256))
    theirs = reference(built).train()
    view, features = their_view(output, (128, 256))

    def plain_l1(predicted: Tensor, expected: Tensor, beta: float, reduction: str) -> Tensor:
        assert beta == pytest.approx(1 / 9)
        return functional.l1_loss(predicted, expected, reduction=reduction)

    with torch.random.fork_rng(devices=[]), monkeypatch.context() as patch:
        torch.manual_seed(5)
        ours = built.task_losses(output, TARGETS)
        patch.setattr(functional, "smooth_l1_loss", plain_l1)
        torch.manual_seed(5)
        proposals, first = theirs.rpn(view, features, their_targets(0))
        _, second = theirs.roi_heads(features, proposals, view.image_sizes, their_targets(1))
    expected = {
        "rpn_objectness": first["loss_objectness"],
        "rpn_boxes": first["loss_rpn_box_reg"],
        "classification": second["loss_classifier"],
        "boxes": second["loss_box_reg"],
    }
    assert list(ours) == list(expected)
    for name, value in expected.items():
        assert value.item() > 0.01, name
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("proposals", [60, 300])
def test_detections_are_torchvisions(proposals: int) -> None:
    built, output = varied(proposals=proposals)
    theirs = reference(built, box_score_thresh=0.05, box_nms_thresh=0.5, box_detections_per_img=500).eval()
    with torch.no_grad():
        boxes = built.proposals(output, size=SIZE, pre_nms_top_n=proposals, post_nms_top_n=proposals)
        _, features = their_view(output)
        expected, _ = theirs.roi_heads(features, boxes, [SIZE, SIZE])
        parts = built.candidates(output, size=SIZE, per_level=proposals * CLASSES)
    candidates = Candidates(*(part.numpy() for part in parts))
    found = postprocess(candidates, PostprocessConfig(max_detections=500))
    for mine, other in zip(found, expected, strict=True):
        assert len(mine) == len(other["scores"]) > 30
        for label in range(CLASSES):
            chosen = other["labels"].numpy() == label + 1
            some = mine.select(mine.labels == label)
            rows = np.column_stack([some.boxes, 1000 * some.scores])
            others = np.column_stack([other["boxes"].numpy()[chosen], 1000 * other["scores"].numpy()[chosen]])
            assert len(rows) == len(others)
            _, partner = linear_sum_assignment(np.abs(rows[:, None] - others[None]).sum(axis=2))
            np.testing.assert_allclose(rows, others[partner], rtol=0, atol=1e-2)


# --- candidates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_level", "count"), [(50, 50), (1000, 180)])
def test_the_number_of_candidates_is_fixed(per_level: int, count: int) -> None:
    built, output = varied((64, 64))
    found = built.proposals(output, size=(64, 64), pre_nms_top_n=60, post_nms_top_n=60)
    assert min(len(boxes) for boxes in found) < 60
    boxes, scores, labels = built.candidates(output, size=(64, 64), per_level=per_level)
    assert boxes.shape == (2, count, 4)
    assert scores.shape == labels.shape == (2, count)
    assert built.candidate_groups(output, per_level=per_level) == ((count, per_level < 180),)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((labels >= 0) & (labels < CLASSES)).all()
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    if count == 180:
        # Padding has score 0, and nothing else has.
        assert [(row > 0).sum().item() for row in scores] == [len(rows) * CLASSES for rows in found]


# --- sampling -------------------------------------------------------------------------------------------------------


def test_ignored_regions_have_no_gradient_in_either_stage() -> None:
    built = detector()
    output = built(images(batch=1))
    logits = [level.detach().requires_grad_() for level in output.logits]
    seen = DetectorOutput(output.pyramid, tuple(logits), output.deltas)
    losses = built.task_losses(seen, [target([], [], [[0, 0, 192, 64], [0, 64, 192, 100]])])
    losses["rpn_objectness"].backward(retain_graph=True)
    finest = logits[0].grad
    assert finest is not None
    # Anchors of P2 have a side of about 32 pixels; these are inside the image, and mostly in the ignored region.
    assert (finest[0, :, 4:12, 8:40] == 0).all()
    assert (finest != 0).any()
    (boxes,) = seen.sampled[0].boxes
    assert len(boxes) > 10
    hidden = torch.minimum(boxes[:, 3], torch.tensor(64.0)) - boxes[:, 1].clamp(max=64)
    assert (hidden <= 0.5 * (boxes[:, 3] - boxes[:, 1])).all()


@pytest.mark.parametrize(("options", "count"), [({}, 512), ({"sampled_rois": 40}, 40)])
def test_the_number_of_sampled_rois(options: dict[str, int], count: int) -> None:
    built = detector(**options)
    output = built(images(batch=1))
    expected = target([[4, 6, 60, 34], [100, 60, 170, 120]], [0, 2])
    proposals = built.proposals(output, size=SIZE, pre_nms_top_n=PRE_NMS_TOP_N, post_nms_top_n=POST_NMS_TOP_N)
    assert len(proposals[0]) > 600
    near = expected.boxes.repeat(100, 1) + torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    (sampled,) = built.roi_heads.sample([torch.cat([proposals[0], near])], [expected])
    assert len(sampled.boxes) == count
    assert (sampled.labels > 0).sum() == count // 4
    assert set(sampled.labels.tolist()) == {0, 1, 3}
    iou = box_iou(sampled.boxes, expected.boxes).amax(dim=1)
    assert ((iou >= 0.5) == (sampled.labels > 0)).all()


def test_objects_themselves_are_proposals() -> None:
    built = detector()
    expected = target([[4, 6, 60, 34]], [1])
    (sampled,) = built.roi_heads.sample([torch.zeros(0, 4)], [expected])
    assert sampled.boxes.tolist() == [[4, 6, 60, 34]]
    assert sampled.labels.tolist() == [2]
    assert sampled.deltas.abs().max() < 1e-6


def test_images_without_objects_have_finite_losses() -> None:
    built = detector()
    losses = built.task_losses(built(images()), [target([], []), target([], [])])
    assert losses["rpn_boxes"].item() == losses["boxes"].item() == 0.0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    gradients = [parameter.grad for parameter in built.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_sampled_rois_are_stored_in_the_output() -> None:
    built, output = varied()
    assert output.sampled == []
    built.task_losses(output, TARGETS)
    built.task_losses(output, TARGETS)
    (sampled,) = output.sampled
    assert [boxes.requires_grad for boxes in sampled.boxes] == [False, False]
    assert len(sampled.class_logits) == sum(len(boxes) for boxes in sampled.boxes)
    torch.testing.assert_close(built.classify(output, sampled.boxes), sampled.class_logits)


def test_bfloat16_pyramids_are_supported() -> None:
    built = detector()
    with torch.autocast("cpu", torch.bfloat16):
        output = built(images())
    assert output.pyramid[0].dtype == torch.bfloat16
    losses = built.task_losses(output, TARGETS)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert output.sampled[0].class_logits.dtype == torch.float32
    sum(losses.values()).backward()  # type: ignore[union-attr]
    _, scores, _ = built.eval().candidates(output, size=SIZE, per_level=20)
    assert scores.dtype == torch.float32


# --- several processes --------------------------------------------------------------------------------------------


def test_losses_of_parts_of_a_batch_average_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    built, output = varied()
    anchors = torch.cat(built.anchors(output))
    proposals = built.proposals(output, size=SIZE, pre_nms_top_n=100, post_nms_top_n=100)
    with torch.random.fork_rng(devices=[]):
        sampled = built.roi_heads.sample(proposals, TARGETS)
    sampled[1] = RoiTargets(sampled[1].boxes[:40], sampled[1].labels[:40], sampled[1].deltas[:40])
    boxes = [of_image.boxes for of_image in sampled]
    logits, deltas = built.roi_heads(output.pyramid, boxes, SIZE)
    parts = [slice(0, len(boxes[0])), slice(len(boxes[0]), None)]

    def first_stage(images: slice) -> dict[str, Tensor]:
        maps = (tuple(level[images] for level in levels) for levels in (output.pyramid, output.logits, output.deltas))
        assignments = [built.assign_anchors(anchors, one) for one in TARGETS[images]]
        return built.rpn.losses(anchors, DetectorOutput(*maps), TARGETS[images], assignments)

    def second_stage(images: slice) -> dict[str, Tensor]:
        rows = slice(None) if images == slice(None) else parts[images.start or 0]
        return built.roi_heads.losses(logits[rows], deltas[rows], sampled[images])

    # The RPN samples 256 anchors of each image unless it is very small, so its counts would be equal.
    monkeypatch.setattr(built.rpn, "_sampler", BalancedPositiveNegativeSampler(100_000, 0.5))
    for name, losses in (("rpn", first_stage), ("roi_head", second_stage)):
        total = losses(slice(None))
        counts: list[Tensor] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                f"ifkd.models.{name}.mean_over_ranks", lambda count, counts=counts: counts.append(count) or count
            )
            for image in range(2):
                losses(slice(image, image + 1))
            assert len({float(count) for count in counts}) == 2 or name == "rpn"
            mean = torch.stack(counts).mean()
            patch.setattr(f"ifkd.models.{name}.mean_over_ranks", lambda _, mean=mean: mean)
            of_images = [losses(slice(image, image + 1)) for image in range(2)]
        for term, value in total.items():
            torch.testing.assert_close(torch.stack([part[term] for part in of_images]).mean(), value)


# --- initial weights ------------------------------------------------------------------------------------------------


def test_a_new_second_stage_has_uniform_scores_and_unchanged_boxes() -> None:
    built = detector().eval()
    with torch.no_grad():
        output = built(images())
        proposals = built.proposals(output, size=SIZE, pre_nms_top_n=60, post_nms_top_n=60)
        logits, deltas = built.roi_heads(output.pyramid, proposals, SIZE)
    assert (logits.softmax(dim=1) - 0.25).abs().max() < 0.15
    assert deltas.abs().max() < 0.1


def test_kaiming_initialization_keeps_the_signal_of_a_narrow_rpn() -> None:
    sizes = {}
    for head_init in ("normal", "kaiming"):
        head = detector(head_init=head_init).rpn.head
        signal = torch.randn(1, CHANNELS, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            sizes[head_init] = head.conv(signal).std().item()
        assert head.cls_logits.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert sizes["normal"] < 0.1
    assert 0.4 < sizes["kaiming"] < 2

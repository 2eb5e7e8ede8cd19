"""Every method against a slow float64 implementation of its formula, cell by cell."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from method_fixtures import BOXES, FAMILIES, HEIGHT, WIDTH, detectors, make_batch, method, options, output, targets
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign, generalized_box_iou

from ifkd import recipe
from ifkd.core.errors import ConfigError
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.distillation.methods.arsd import Arsd
from ifkd.distillation.methods.crosskd import CrossKd
from ifkd.distillation.methods.fgd import Fgd, GlobalContext
from ifkd.distillation.methods.fkd import Fkd, FkdLevel
from ifkd.distillation.methods.insdist import InsDist
from ifkd.distillation.methods.method import Adapters
from ifkd.models import DetectorOutput

SEEN = targets(BOXES, BOXES[1:2])


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


families = pytest.mark.parametrize("family", FAMILIES)


def pairs(family: recipe.Family, adapters: Adapters | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the teacher's maps and the student's adapted maps in float64."""
    student, teacher = output(family, 1).pyramid, output(family, 2).pyramid
    adapted = list(student) if adapters is None else [level.detach() for level in adapters(student)]
    yield from ((t.double(), s.double()) for t, s in zip(teacher, adapted, strict=True))


def found(built: torch.nn.Module, family: recipe.Family) -> dict[str, tuple[float, float]]:
    """Return value and weight of each of a method's terms."""
    terms = built.losses(make_batch(output(family, 1), output(family, 2), SEEN))
    return {name: (term.value.item(), term.weight) for name, term in terms.items()}


def assert_terms(got: dict[str, tuple[float, float]], expected: dict[str, tuple[float, float]]) -> None:
    assert set(got) == set(expected)
    for name, (value, weight) in expected.items():
        assert got[name] == (pytest.approx(float(value), rel=2e-4), pytest.approx(weight)), name


@families
def test_fitnet(family: recipe.Family) -> None:
    built = method("fitnet", family, feature_scale="none")
    expected = sum(((t - s) ** 2).mean() for t, s in pairs(family, built.adapters))
    assert_terms(found(built, family), {"feature": (float(expected), 1.0)})


@families
@pytest.mark.parametrize("level_weights", ["cells", "equal"])
@pytest.mark.parametrize("count", [2, 5])
def test_at(family: recipe.Family, level_weights: str, count: int) -> None:
    total = norm = 0.0
    for teacher, student in list(pairs(family))[:count]:
        difference = 0.0
        for t, s in zip(teacher, student, strict=True):
            a, b = (t**2).mean(dim=0).flatten(), (s**2).mean(dim=0).flatten()
            difference += float(((a / a.norm() - b / b.norm()) ** 2).sum())
        cells = teacher[0, 0].numel()
        weight = cells**2 if level_weights == "cells" else 1
        total += weight * difference / (len(teacher) * cells)
        norm += weight
    levels = "two_finest" if count == 2 else "all"
    built = method("at", family, level_weights=level_weights, levels=levels, weight=5.0)
    assert_terms(found(built, family), {"attention": (total / norm, 5.0)})


@families
def test_pkd(family: recipe.Family) -> None:
    """Half the mean squared difference is 1 - Pearson's correlation, times (n - 1) / n."""
    total = 0.0
    for teacher, student in list(pairs(family))[:4]:
        count = teacher[:, 0].numel()
        correlations = [
            torch.corrcoef(torch.stack([teacher[:, c].flatten(), student[:, c].flatten()]))[0, 1]
            for c in range(teacher.shape[1])
        ]
        total += float(1 - torch.stack(correlations).mean()) * (count - 1) / count
    weight = 10.0 if family == "retinanet" else 6.0
    assert_terms(found(method("pkd", family), family), {"feature": (total, weight)})


@families
def test_cwd(family: recipe.Family) -> None:
    total, tau = 0.0, 2.0
    for teacher, student in pairs(family):
        divergences = []
        for t, s in zip(teacher.flatten(0, 1), student.flatten(0, 1), strict=True):
            p, q = (t.flatten() / tau).softmax(0), (s.flatten() / tau).softmax(0)
            divergences.append((p * (p / q).log()).sum())
        total += float(torch.stack(divergences).mean()) * tau**2
    assert_terms(found(method("cwd", family, temperature=tau), family), {"feature": (total, 10.0)})


@families
def test_frs(family: recipe.Family) -> None:
    built = method("frs", family, feature_scale="none")
    feature = head = 0.0
    student, teacher = output(family, 1), output(family, 2)
    for level, (t, s) in enumerate(pairs(family, built.adapters)):
        zt, zs = teacher.logits[level].double(), student.logits[level].double()
        mask = zt.sigmoid().amax(dim=1)
        feature += float((mask * ((t - s) ** 2).sum(dim=1)).sum() / mask.sum())
        errors = -(zt.sigmoid() * zs.sigmoid().log() + (1 - zt.sigmoid()) * (1 - zs.sigmoid()).log())
        head += float((mask * errors.sum(dim=1)).sum() / mask.sum())
    weights = (0.005, 0.02) if family == "retinanet" else (0.002, 0.1)
    assert_terms(found(built, family), {"feature": (feature, weights[0]), "head": (head, weights[1])})


def slow_attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return spatial [h, w] and channel [c] attention of one image."""
    spatial = (features.abs().mean(dim=0).flatten() / temperature).softmax(0).view(features.shape[1:])
    channel = (features.abs().mean(dim=(1, 2)) / temperature).softmax(0)
    return spatial.numel() * spatial, channel.numel() * channel


def slow_context(block: GlobalContext, features: Tensor) -> Tensor:
    """Return one image's map with its context."""
    w = block.key.weight.double().view(-1)
    side = (torch.einsum("c,chw->hw", w, features) + block.key.bias.double()).flatten().softmax(0)
    context = features.flatten(1) @ side
    first, norm, _, last = block.change
    hidden = first.weight.double()[:, :, 0, 0] @ context + first.bias.double()
    hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
    hidden = (hidden * norm.weight.double().flatten() + norm.bias.double().flatten()).relu()
    return features + (last.weight.double()[:, :, 0, 0] @ hidden + last.bias.double())[:, None, None]


@families
def test_fgd(family: recipe.Family) -> None:
    built = method("fgd", family, feature_scale="none")
    assert isinstance(built, Fgd)
    for block in (*built.of_teacher, *built.of_student):
        torch.nn.init.normal_(block.change[3].weight, std=0.3, generator=torch.Generator().manual_seed(0))
    sums = dict.fromkeys(("foreground", "background", "attention", "context"), 0.0)
    levels = list(pairs(family))[: 5 if family == "retinanet" else 4]
    for level, (teacher, student) in enumerate(levels):
        for t, s, target in zip(teacher, student, SEEN, strict=True):
            (space, channel), (own_space, own_channel) = slow_attention(t, 0.5), slow_attention(s, 0.5)
            rows, columns = t.shape[1:]
            mask = torch.zeros(rows, columns, dtype=torch.float64)
            for x1, y1, x2, y2 in target.boxes.tolist():
                top, bottom = math.floor(y1 * rows / HEIGHT), min(math.ceil(y2 * rows / HEIGHT), rows - 1)
                left, right = math.floor(x1 * columns / WIDTH), min(math.ceil(x2 * columns / WIDTH), columns - 1)
                side = 1 / ((bottom - top + 1) * (right - left + 1))
                for i in range(top, bottom + 1):
                    for j in range(left, right + 1):
                        mask[i, j] = max(mask[i, j].item(), side)
            behind = (mask == 0).double()
            errors = ((t - s) ** 2 * channel[:, None, None]).sum(dim=0) * space
            sums["foreground"] += float((errors * mask).sum()) / 2
            sums["background"] += float((errors * behind).sum() / max(float(behind.sum()), 1.0)) / 2
            sums["attention"] += float((channel - own_channel).abs().sum() + (space - own_space).abs().sum()) / 2
            contexts = slow_context(built.of_teacher[level], t), slow_context(built.of_student[level], s)
            sums["context"] += float(((contexts[0] - contexts[1]) ** 2).sum()) / 2
    weights = (1e-3, 5e-4, 5e-4, 5e-6) if family == "retinanet" else (5e-5, 2.5e-5, 5e-5, 5e-7)
    assert_terms(found(built, family), dict(zip(sums, zip(sums.values(), weights, strict=True), strict=True)))


def slow_non_local(part: FkdLevel, side: str, features: Tensor, pool: int) -> Tensor:
    """Return a map with its non-local relations, by the matrix of all pairs of locations."""
    block = part.of_teacher if side == "teacher" else part.of_student
    kernel = [min(pool, extent) for extent in features.shape[2:]]
    theta, phi, g = (way.double()(features) for way in (block.theta, block.phi, block.g))
    phi, g = (torch.nn.functional.max_pool2d(way, kernel).flatten(2) for way in (phi, g))
    relations = theta.flatten(2).transpose(1, 2) @ phi / phi.shape[2]
    prediction = (relations @ g.transpose(1, 2)).transpose(1, 2).reshape(len(features), -1, *features.shape[2:])
    return features + block.back.double()(prediction)


@families
def test_fkd(family: recipe.Family) -> None:
    built = method("fkd", family, feature_scale="none").eval()
    assert isinstance(built, Fkd)
    for part in built.of_levels:
        for block in (part.of_teacher, part.of_student):
            torch.nn.init.normal_(block.back[1].weight, generator=torch.Generator().manual_seed(0))
    got = found(built, family)
    temperature = 0.1 if family == "retinanet" else 0.5
    feature = attention = relations = 0.0
    for part, (teacher, student), pool in zip(built.of_levels, pairs(family), (8, 4, 2, 2, 2), strict=True):
        part.double()
        adapted = part.feature(student)
        total = 0.0
        for t, s, a in zip(teacher, student, adapted, strict=True):
            (space, channel), (own_space, own_channel) = slow_attention(t, temperature), slow_attention(s, temperature)
            weight = (space + own_space)[None] / 2
            if family == "retinanet":
                weight = weight * (channel + own_channel)[:, None, None] / 2
            total += float(((t - a) ** 2 * weight).sum())
        feature += math.sqrt(total)
        attention += float((teacher.mean((2, 3)) - part.channels(student.mean((2, 3)))).norm())
        attention += float((teacher.mean(1, keepdim=True) - part.places(student.mean(1, keepdim=True))).norm())
        both = slow_non_local(part, "teacher", teacher, pool), slow_non_local(part, "student", student, pool)
        relations += float((both[0] - part.relations(both[1])).norm())
    weights = (4.2e-4, 2.4e-2, 4.2e-4) if family == "retinanet" else (7e-5, 4e-3, 7e-5)
    names = ("feature", "attention", "non_local")
    assert_terms(got, dict(zip(names, zip((feature, attention, relations), weights, strict=True), strict=True)))


@families
@pytest.mark.parametrize("binary", [False, True])
def test_arsd(family: recipe.Family, binary: bool) -> None:
    networks = detectors(family)
    built = method("arsd", family, pair=networks, binary_mask=binary, feature_scale="none")
    assert isinstance(built, Arsd)
    student, teacher = with_small_deltas(output(family, 1)), with_small_deltas(output(family, 2))
    masks = [torch.zeros(2, *level.shape[2:], dtype=torch.float64) for level in student.pyramid]
    for image, target in enumerate(SEEN):
        for x1, y1, x2, y2 in target.boxes.tolist():
            side = math.sqrt((x2 - x1) * (y2 - y1) / (WIDTH * HEIGHT))
            mask = masks[min(max(math.floor(4 + math.log2(side + 1e-6)), 0), 4)]
            rows, columns = mask.shape[1:]
            top, left = int(y1 * rows / HEIGHT), int(x1 * columns / WIDTH)
            bottom, right = max(int(y2 * rows / HEIGHT), top + 1), max(int(x2 * columns / WIDTH), left + 1)
            mask[image, top:bottom, left:right] += 1 + math.exp(-2 * side)
    if binary:
        masks = [(mask > 0).double() for mask in masks]
    cells = 2 * sum(int((mask > 0).sum()) for mask in masks) + 1
    feature = sum(
        (m * ((t - s) ** 2).sum(1)).sum() for m, (t, s) in zip(masks, pairs(family, built.adapters), strict=True)
    )
    head = sum(
        (m * ((t.double() - s.double()) ** 2).sum(1)).sum()
        for m, t, s in zip(masks, teacher.logits, student.logits, strict=True)
    )
    boxes = slow_ssrd(networks, student.deltas, teacher.deltas)
    expected = {"feature": (float(feature) / cells, 0.01), "head": (float(head) / cells, 0.01), "boxes": (boxes, 0.1)}
    terms = built.losses(make_batch(student, teacher, SEEN))
    assert_terms({name: (term.value.item(), term.weight) for name, term in terms.items()}, expected)
    assert boxes > 0


def with_small_deltas(one: DetectorOutput) -> DetectorOutput:
    """Return outputs with small deltas, so that some decoded boxes are better than their anchors."""
    return replace(one, deltas=tuple(level / 5 for level in one.deltas))


def slow_ssrd(networks: tuple, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> float:  # type: ignore[type-arg]
    """Return the loss of boxes, anchor by anchor."""
    detector, coder = networks[0], BoxCoder((1.0, 1.0, 1.0, 1.0))
    levels = detector.anchors(output(detector.config.family, 1))
    assigned = [detector.assign_anchors(torch.cat(levels), target) for target in SEEN]
    total, start = 0.0, 0
    for anchors, students_level, teachers_level in zip(levels, students, teachers, strict=True):
        losses = []
        per_cell = students_level.shape[1] // 4
        for image, target in enumerate(SEEN):
            rows = [
                level[image].view(per_cell, 4, *level.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
                for level in (students_level, teachers_level)
            ]
            for index in (assigned[image][start : start + len(anchors)] >= 0).nonzero()[:, 0].tolist():
                anchor, object_ = anchors[index : index + 1], target.boxes[assigned[image][start + index]][None]
                own, followed = (coder.decode_single(row[index : index + 1], anchor) for row in rows)
                fits = [plain_iou(box[0], object_[0]) for box in (followed, own, anchor)]
                if fits[0] > fits[1] > fits[2]:
                    losses.append(2 * (1 - float(generalized_box_iou(own, followed))))
        total += sum(losses) / len(losses) if losses else 0.0
        start += len(anchors)
    return total


def plain_iou(one: Tensor, other: Tensor) -> float:
    """Return the IoU of two boxes."""
    a, b = one.tolist(), other.tolist()
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@families
def test_insdist(family: recipe.Family) -> None:
    built = method("insdist", family, feature_scale="none")
    assert isinstance(built, InsDist)
    level = 2 if family == "retinanet" else 3
    outline = output(family, 2).pyramid[level].double()
    rows, columns = outline.shape[2:]
    mask = torch.zeros(2, rows, columns, dtype=torch.float64)
    for image, target in enumerate(SEEN):
        for x1, y1, x2, y2 in target.boxes.tolist():
            left, right = int(x1 * columns / WIDTH), min(int(x2 * columns / WIDTH), columns - 1)
            top, bottom = int(y1 * rows / HEIGHT), min(int(y2 * rows / HEIGHT), rows - 1)
            prototype = outline[image, :, top : bottom + 1, left : right + 1].mean(dim=(1, 2))
            energy = torch.stack(
                [torch.stack([c @ prototype for c in row.T]) for row in outline[image].transpose(0, 1)]
            )
            if left == right or top == bottom or energy.max() <= 0:
                mask[image, top : bottom + 1, left : right + 1] = 1
            else:
                mask[image][(energy - energy.min()) / energy.max() > 0.5] = 1
    foreground = background = 0.0
    for t, s in pairs(family, built.adapters):
        height, width = t.shape[2:]
        inside = torch.tensor(
            [[[m[i * rows // height, j * columns // width] for j in range(width)] for i in range(height)] for m in mask]
        )
        errors = ((t - s) ** 2).sum(dim=1)
        foreground += math.sqrt(float((errors * inside).sum()))
        background += math.sqrt(float((errors * (1 - inside)).sum()))
    weights = (4.2e-4, 2.1e-4) if family == "retinanet" else (7e-5, 3.5e-5)
    relation = slow_relation(family, built.adapters)
    expected = {
        "foreground": (foreground, weights[0]),
        "background": (background, weights[1]),
        "relation": (relation, 1.0),
    }
    assert_terms(found(built, family), expected)


def slow_relation(family: recipe.Family, adapters: Adapters) -> float:
    """Return the relation loss, with torchvision's multi-scale pooling."""
    names = [str(level) for level in range(5)]
    labels = torch.cat([target.labels for target in SEEN]).tolist()
    cosines = []
    for side in (0, 1):
        pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
        maps = {name: pair[side].float() for name, pair in zip(names, pairs(family, adapters), strict=True)}
        found_ = pool(maps, [target.boxes for target in SEEN], [(HEIGHT, WIDTH)] * 2).flatten(1).double()
        cosines.append(torch.nn.functional.cosine_similarity(found_[:, None], found_[None], dim=2))
    same, other = [], []
    for i, one in enumerate(labels):
        for j, two in enumerate(labels):
            if i != j:
                (same if one == two else other).append(float((cosines[0][i, j] - cosines[1][i, j]) ** 2))
    return sum(same) / max(len(same), 1) / 2 + sum(other) / max(len(other), 1) / 2


def test_crosskd() -> None:
    networks = detectors("retinanet")
    built = method("crosskd", "retinanet", pair=networks)
    assert isinstance(built, CrossKd)
    student, teacher = output("retinanet", 1), output("retinanet", 2)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    levels = networks[0].anchors(student)
    matches = [networks[0].assign_anchors(torch.cat(levels), target) for target in SEEN]
    positives = max(sum(int((matched >= 0).sum()) for matched in matches), 1)
    classes = boxes = 0.0
    start = 0
    for level, anchors in enumerate(levels):
        predictions = []
        for branch, predictor in (("classification_head", "cls_logits"), ("regression_head", "bbox_reg")):
            own, tower = getattr(networks[0].head, branch), getattr(networks[1].head, branch)
            s, t = student.pyramid[level], teacher.pyramid[level]
            for layer in range(3):
                s, t = own.conv[layer][0](s), tower.conv[layer][0](t)
                if layer < 2:
                    s, t = s.relu(), t.relu()
            spread = [(x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True, correction=0)) for x in (s, t)]
            s = (s - spread[0][0]) / spread[0][1] * spread[1][1] + spread[1][0]
            prediction = getattr(tower, predictor)(tower.conv[3][0](s.relu()).relu())
            predictions.append(prediction.unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3).detach())
        soft = teacher.logits[level].sigmoid().unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        moves = teacher.deltas[level].unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        for image in range(2):
            counted = matches[image][start : start + len(anchors)] != -2
            p = predictions[0][image].sigmoid().double()
            errors = -(soft[image] * p.log() + (1 - soft[image]) * (1 - p).log()) * (p - soft[image]).abs()
            classes += float(errors[counted].sum())
            own_box, expected = (coder.decode_single(d[image], anchors) for d in (predictions[1], moves))
            fit = 1 - generalized_box_iou(own_box, expected).diagonal()
            boxes += float((fit * soft[image].amax(dim=1))[counted].sum())
        start += len(anchors)
    wanted_terms = {"classes": (classes / positives, 1.0), "boxes": (boxes / positives, 1.0)}
    got = found(built, "retinanet")
    for name, (value, weight) in wanted_terms.items():
        assert got[name] == (pytest.approx(value, rel=1e-3), weight)


def test_methods_that_use_anchors_need_the_detectors() -> None:
    for name in ("arsd", "crosskd"):
        with pytest.raises(ConfigError, match="needs both detectors"):
            build_method(options(name), NetworkPair(16, 16, recipe.LEVELS["retinanet"], ()))

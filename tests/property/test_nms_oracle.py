"""IoU and non-maximum suppression against torchvision's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifkd.core.detections import Detections, pairwise_iou
from ifkd.core.postprocess import nms

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")


@st.composite
def detections(draw):
    n = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corner = rng.uniform(0, 40, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 30, (n, 2))], axis=1)
    if draw(st.booleans()):
        boxes = np.rint(boxes)  # exact ties of IoU, shared edges, boxes without area
    scores = rng.permutation(n) / max(n, 1)  # all different, because the order of ties is implementation-defined
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, 3, n))


@given(detections(), detections())
@settings(deadline=None)
def test_iou_equals_torchvisions(one, other):
    expected = ops.box_iou(torch.from_numpy(one.boxes).double(), torch.from_numpy(other.boxes).double())
    expected = torch.nan_to_num(expected, nan=0.0)  # 0/0 of two boxes without area is 0 here
    np.testing.assert_allclose(pairwise_iou(one.boxes, other.boxes), expected.numpy(), atol=1e-12)


@given(detections(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.77, 1.0]))
@settings(deadline=None)
def test_nms_equals_torchvisions(boxes_of_image, threshold):
    indices = [
        index[
            ops.nms(
                torch.from_numpy(boxes_of_image.boxes[index]).double(),
                torch.from_numpy(boxes_of_image.scores[index]).double(),
                threshold,
            ).numpy()
        ]
        for index in (np.flatnonzero(boxes_of_image.labels == label) for label in range(3))
    ]
    expected = boxes_of_image.select(np.concatenate(indices)).in_canonical_order()
    ours = nms(boxes_of_image, iou_threshold=threshold)
    np.testing.assert_array_equal(ours.boxes, expected.boxes)
    np.testing.assert_array_equal(ours.scores, expected.scores)
    np.testing.assert_array_equal(ours.labels, expected.labels)


@given(detections(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_nms_of_equal_scores_does_not_depend_on_the_order(boxes_of_image, random):
    order = list(range(len(boxes_of_image)))
    random.shuffle(order)
    tied = Detections(boxes_of_image.boxes, np.full(len(boxes_of_image), 0.5, np.float32), boxes_of_image.labels)
    one = nms(tied, iou_threshold=0.5)
    other = nms(tied.select(np.array(order, np.int64)), iou_threshold=0.5)
    np.testing.assert_array_equal(one.boxes, other.boxes)

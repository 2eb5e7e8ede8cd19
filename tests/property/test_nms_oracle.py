"""IoU and suppression against torchvision's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifkd.core.detections import Detections, nms, pairwise_iou

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")


@st.composite
def crowds(draw):
    n = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corner = rng.uniform(0, 40, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 30, (n, 2))], axis=1)
    if draw(st.booleans()):
        boxes = np.rint(boxes)  # exact ties of IoU, shared edges, boxes without area
    scores = rng.permutation(n) / max(n, 1)  # all different: torchvision breaks ties its own way
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, 3, n))


@given(crowds(), crowds())
@settings(deadline=None)
def test_iou_is_torchvisions(one, other):
    expected = ops.box_iou(torch.from_numpy(one.boxes).double(), torch.from_numpy(other.boxes).double())
    expected = torch.nan_to_num(expected, nan=0.0)  # 0/0 of two boxes without area is 0 here
    np.testing.assert_allclose(pairwise_iou(one.boxes, other.boxes), expected.numpy(), atol=1e-12)


@given(crowds(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.77, 1.0]))
@settings(deadline=None)
def test_suppression_is_torchvisions(crowd, threshold):
    kept = [
        index[
            ops.nms(
                torch.from_numpy(crowd.boxes[index]).double(), torch.from_numpy(crowd.scores[index]).double(), threshold
            ).numpy()
        ]
        for index in (np.flatnonzero(crowd.labels == label) for label in range(3))
    ]
    expected = crowd.select(np.concatenate(kept)).in_canonical_order()
    ours = nms(crowd, iou_threshold=threshold)
    np.testing.assert_array_equal(ours.boxes, expected.boxes)
    np.testing.assert_array_equal(ours.scores, expected.scores)
    np.testing.assert_array_equal(ours.labels, expected.labels)


@given(crowds(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_suppression_does_not_depend_on_the_order(crowd, random):
    order = list(range(len(crowd)))
    random.shuffle(order)
    tied = Detections(crowd.boxes, np.full(len(crowd), 0.5, np.float32), crowd.labels)
    one = nms(tied, iou_threshold=0.5)
    other = nms(tied.select(np.array(order, np.int64)), iou_threshold=0.5)
    np.testing.assert_array_equal(one.boxes, other.boxes)

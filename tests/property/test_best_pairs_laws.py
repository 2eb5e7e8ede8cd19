"""Laws of the selection of anchor-class pairs: it is top-k over all pairs, and of equal scores the first are taken."""

from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from torch import Tensor, nn

from export.onnx.onnx_export import export_graph
from ifkd.models.box_decoding import best_pairs

SHAPES = [(40, 3, 7), (40, 5, 39), (40, 3, 40), (9, 4, 30), (30, 1, 4)]
"""Anchors, classes and k: with and without a selection of anchors."""
BATCH = 2


class Pairs(nn.Module):
    """The best pairs, as scores, anchors and labels."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best = best_pairs(scores, self.k)
        return best.scores, best.anchors, best.labels


@cache
def session_of(shape: tuple[int, int, int]) -> onnxruntime.InferenceSession:
    anchors, classes, k = shape
    example = torch.zeros(BATCH, anchors, classes)
    proto = export_graph(Pairs(k).eval(), example, inputs=["scores"], outputs=["best", "anchors", "labels"])
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_best_pairs_are_the_first_of_a_stable_sort_of_all_pairs(
    shape: tuple[int, int, int], data: st.DataObject
) -> None:
    anchors, classes, k = shape
    # Five values only, so that many pairs have the same score, at the limit of top-k, too.
    values = st.sampled_from([-1e30, -2.0, -0.5, 0.0, 3.0])
    scores = data.draw(hypothesis_numpy.arrays(np.float32, (BATCH, anchors, classes), elements=values))
    pair = np.argsort(-scores.reshape(BATCH, -1), axis=1, kind="stable")[:, :k]
    expected = [np.take_along_axis(scores.reshape(BATCH, -1), pair, 1), pair // classes, pair % classes]
    for found, wanted in zip(session_of(shape).run(None, {"scores": scores}), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    # Torch may take any of several equal scores, but no pair twice.
    by_torch = [part.numpy() for part in Pairs(k)(torch.from_numpy(scores))]
    np.testing.assert_array_equal(by_torch[0], expected[0])
    for image in range(BATCH):
        np.testing.assert_array_equal(scores[image][by_torch[1][image], by_torch[2][image]], expected[0][image])
        assert len(np.unique(by_torch[1][image] * classes + by_torch[2][image])) == k

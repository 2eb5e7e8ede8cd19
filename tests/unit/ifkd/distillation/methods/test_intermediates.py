"""Intermediate maps of IFKD: they reproduce the loss, and equal SciPy's."""

import numpy as np
import pytest
import torch
from method_fixtures import make_batch, method, output
from scipy import fft
from scipy.spatial.distance import cosine

from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods import IfkdMethod, Method
from ifkd.distillation.methods.intermediates import Intermediates, compute_intermediates

BATCH = make_batch(output("retinanet", 1), output("retinanet", 2))


def perturbed(built: Method) -> Method:
    """Return the method in eval mode after a change of all parameters."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return built.eval()


def maps(built: Method, seen: DistillationBatch = BATCH) -> list[Intermediates]:
    assert isinstance(built, IfkdMethod)
    return compute_intermediates(built, seen)


def test_the_loss_follows_from_the_maps() -> None:
    """Equation 12 from the maps alone; the factor is 256 over the 16 channels."""
    built = perturbed(method("ifkd", "retinanet"))
    total = 0.0
    for level in maps(built):
        weight = level.similarity.double() / level.similarity.double().sum()
        total += float((weight * (level.target.double() - level.student.double()) ** 2).sum()) * 256 / 16
    assert float(built.losses(BATCH)["feature"].value.detach()) == pytest.approx(total, rel=1e-5)


def test_low_frequencies_equal_scipys_and_are_weighted_by_the_teachers_confidence() -> None:
    built = method("ifkd", "retinanet", reference_rms=0.3, fdr={"r": 0.4, "filter": "none"}).eval()
    for level, features, logits in zip(maps(built), BATCH.teacher.pyramid, BATCH.teacher.logits, strict=True):
        taken = features.double().numpy() * 0.3  # the reference over the fixture's root mean square of 1
        height, width = taken.shape[2:]
        limit = 0.4 * min(height, width) / 2
        rows, columns = (np.abs(fft.fftfreq(side, 1 / side)) <= limit for side in (height, width))
        low = fft.ifft2(fft.fft2(taken) * (rows[:, None] & columns[None])).real
        sure = 1 / (1 + np.exp(-logits.double().numpy().max(1, keepdims=True)))
        assert level.teacher.numpy() == pytest.approx(taken, abs=1e-5)
        assert level.low.numpy() == pytest.approx(low, abs=1e-5)
        assert level.richness.numpy() == pytest.approx(sure, abs=1e-6)
        assert level.target.numpy() == pytest.approx(taken - low * (1 - sure), abs=1e-5)
        assert level.disturbance is None


def test_the_disturbance_is_the_change_of_the_target() -> None:
    embedding = torch.randn(2, 256, 6, 10, generator=torch.Generator().manual_seed(0))
    seen = DistillationBatch(BATCH.student, BATCH.teacher, embedding, BATCH.targets, 0)
    built = method("ifkd", "retinanet", ede={"levels": ["p3", "p4"]}).eval()
    for with_it, without in zip(maps(built, seen), maps(built), strict=True):
        if with_it.disturbance is None:
            assert with_it.level in {"p5", "p6", "p7"}
            assert torch.equal(with_it.target, without.target)
            continue
        assert 0 < float(with_it.disturbance.min()) < float(with_it.disturbance.max()) < 1
        gained = (with_it.target - without.target).flatten().double().numpy()
        assert cosine(gained, with_it.disturbance.flatten().double().numpy()) < 1e-6


def test_intermediates_need_eval_mode() -> None:
    with pytest.raises(AssertionError, match="at random"):
        maps(method("ifkd", "retinanet").train())

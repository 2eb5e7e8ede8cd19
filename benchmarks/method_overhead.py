"""Cost of IFKD itself beside a plain training step: FDR, HSM, both losses and the adapters, at 256 channels.

    python benchmarks/method_overhead.py [--px 256] [--batch 4] [--rounds 5]

Teacher and MobileSAM are excluded: their outputs are given, as from a filled cache. Plain steps and steps of the method
alternate in one process; the minimum of each counts, because other load on the machine can only add time. The exit code
is 1 if the method costs more than 15 % of a plain step of RetinaNet with ResNet-18.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import torch

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.models import DetectorOutput, Targets, build_detector

LIMIT = 0.15
CHANNELS = 256
EMBEDDING_SIDE = 64


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of all rounds."""

    plain_s: list[float]
    """Forward, task losses and backward of the detector alone."""
    method_s: list[float]
    """Forward and backward of the method on given maps."""

    @property
    def ratio(self) -> float:
        """The method's minimum time over the plain step's."""
        return min(self.method_s) / min(self.plain_s)


def method_overhead(px: int, *, batch_size: int = 4, rounds: int = 5, backbone: str = "resnet18") -> Overhead:
    """Measure the method's cost beside a plain RetinaNet step.

    Args:
        px: Side of the tiles.
        batch_size: Tiles a step.
        rounds: Measured rounds, after one warm-up.
        backbone: The student's.
    """
    torch.manual_seed(0)
    config = recipe.DetectorOptions.model_validate({"backbone": backbone, "channels": CHANNELS})
    detector = build_detector(config, 3).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    method = build_method(
        recipe.IfkdOptions(warmup_iters=0), NetworkPair(CHANNELS, CHANNELS, config.levels, (0.3,) * 5)
    ).train()
    images = torch.randn(batch_size, 3, px, px).to(memory_format=torch.channels_last)
    target = Targets(torch.tensor([[10.0, 10.0, 60.0, 60.0]]), torch.tensor([1]), torch.zeros(0, 4))
    targets = [target] * batch_size
    with torch.no_grad():
        teacher: DetectorOutput = detector(images)
    embedding = torch.randn(batch_size, 256, EMBEDDING_SIDE, EMBEDDING_SIDE)

    def plain_step() -> float:
        started = time.perf_counter()
        losses = detector.task_losses(detector(images), targets)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - started
        detector.zero_grad()
        return seconds

    def method_step(iteration: int) -> float:
        pyramid = tuple(torch.randn_like(level).requires_grad_() for level in teacher.pyramid)
        logits = tuple(level.clone().requires_grad_() for level in teacher.logits)
        student = DetectorOutput(pyramid, logits, teacher.deltas)
        batch = DistillationBatch(student, teacher, embedding, targets, iteration)
        started = time.perf_counter()
        terms = method.losses(batch).values()
        torch.stack([term.weight * term.value for term in terms]).sum().backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - started
        method.zero_grad()
        return seconds

    plain_step(), method_step(0)
    plain_s, method_s = [], []
    for number in range(1, rounds + 1):
        plain_s.append(plain_step())
        method_s.append(method_step(number))
    return Overhead(plain_s, method_s)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the cost of IFKD itself beside a plain training step.")
    parser.add_argument("--px", type=int, default=256, help="side of the tiles, pixels")
    parser.add_argument("--batch", type=int, default=4, help="tiles a step")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    options = parser.parse_args()
    measured = method_overhead(options.px, batch_size=options.batch, rounds=options.rounds)
    print(f"{options.px} px, batch {options.batch}, {CHANNELS} channels, {torch.get_num_threads()} threads")
    for name, samples in (("plain step", measured.plain_s), ("IFKD itself", measured.method_s)):
        print(f"{name:11} {min(samples):.3f} s  of {', '.join(f'{value:.3f}' for value in samples)}")
    print(f"ratio       {measured.ratio:.1%} (limit {LIMIT:.0%})")
    return int(measured.ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

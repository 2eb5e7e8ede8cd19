"""Balance of a method's loss terms with the task losses, by their gradients at the student's pyramid."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ifkd.compute.distributed import mean_over_ranks
from ifkd.distillation.methods import Term
from ifkd.recipe.training_options import BalanceOptions

MEASURE_EVERY = 10
"""Steps between measurements, each of which costs one more backward pass of the student's head."""
MOMENTUM = 0.8
"""Of the running means of norms, per measurement."""
MAX_FACTOR = 1e4
"""Largest factor of a weight: a term with nothing left to teach, whose gradient is rounding errors, stays small."""
TASK, TOTAL = "task", "method"
"""Names of the norms of the task losses together, and of a method's weighted terms together."""


class LossBalance:
    """Norms of the gradients at the student's pyramid, and the weights that follow from them.

    The norms are those of the batch of all ranks, so that every rank has the same weights. The state is saved, so that
    a resumed run has the same weights as an uninterrupted one.
    """

    def __init__(self, options: BalanceOptions, *, by_term: bool, loss_scale: Callable[[], float]) -> None:
        """`by_term` as in `Method`; `loss_scale` returns the factor that keeps gradients in the range of float16."""
        self._options, self._by_term, self._loss_scale = options, by_term, loss_scale
        self._means: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._count = 0
        self._iteration = -1

    def is_due(self, iteration: int) -> bool:
        """Return whether the first part of this step's batch is to be measured."""
        return iteration != self._iteration and (iteration % MEASURE_EVERY == 0 or self._count == 0)

    def measure(self, terms: Mapping[str, Term], pyramid: Sequence[Tensor], iteration: int) -> None:
        """Update the norms from a batch's terms, whose graph is kept; norms that are not finite are ignored."""
        methods = {name: term for name, term in terms.items() if name.startswith("method/")}
        if any(term.warmup == 0 for term in methods.values()):
            return
        self._iteration = iteration
        scale = self._loss_scale()
        task = torch.stack([term.value.float() for name, term in terms.items() if name not in methods]).sum()
        gradients = {name: _gradient(term.value, pyramid, scale) for name, term in methods.items()}
        weighted = [
            [part * (methods[name].weight / methods[name].warmup) for part in parts]
            for name, parts in gradients.items()
        ]
        gradients |= {
            TASK: _gradient(task, pyramid, scale),
            TOTAL: [torch.stack(parts).sum(0) for parts in zip(*weighted, strict=True)],
        }
        squares = torch.stack(
            [torch.stack([part.square().sum() for part in parts]).sum() for parts in gradients.values()]
        )
        values = [value**0.5 for value in mean_over_ranks(squares).tolist()]
        if not all(map(math.isfinite, values)):
            return
        self._latest = dict(zip(gradients, values, strict=True))
        momentum = min(MOMENTUM, self._count / (self._count + 1))
        self._means = {
            name: momentum * self._means.get(name, value) + (1 - momentum) * value
            for name, value in self._latest.items()
        }
        self._count += 1

    def weigh(self, terms: dict[str, Term]) -> dict[str, Term]:
        """Return the terms with the weights of the recipe's form."""
        factors = self._factors()
        constant = self._options.multiple if self._options.form == "constant" else 1.0
        factors = {name: factors.get(name, constant if name.startswith("method/") else 1.0) for name in terms}
        return {name: replace(term, weight=term.weight * factors[name]) for name, term in terms.items()}

    def summarize(self, terms: Mapping[str, Term]) -> dict[str, float]:
        """Return the latest ratio of each weighted term's gradient to that of the task, and the factors of weights."""
        task = self._latest.get(TASK, 0.0)
        names = [name for name in self._latest if name in terms]
        ratios = {name: terms[name].weight * self._latest[name] / max(task, 1e-30) for name in names}
        summary = {f"gradient/{name.removeprefix('method/')}": ratio for name, ratio in ratios.items()}
        return summary | {f"factor/{name.removeprefix('method/')}": factor for name, factor in self._factors().items()}

    def _factors(self) -> dict[str, float]:
        """Return the factors of the weights, by term; none with constant weights or before the first measurement."""
        if self._options.form == "constant" or not self._means:
            return {}
        names = [name for name in self._means if name not in (TASK, TOTAL)]
        wanted = self._options.multiple * self._means[TASK]
        found = {name: self._means[name if self._by_term else TOTAL] for name in names}
        return {name: min(wanted / norm, MAX_FACTOR) if norm > 0 else 0.0 for name, norm in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the norms."""
        return {"means": self._means, "latest": self._latest, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with saved norms."""
        self._means, self._latest, self._count = dict(state["means"]), dict(state["latest"]), state["count"]


def _gradient(value: Tensor, pyramid: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Return the gradient of a loss at each level in float32; zeros where the loss does not depend on it."""
    parts: Sequence[Tensor | None] = [None] * len(pyramid)
    if value.requires_grad:
        parts = torch.autograd.grad(value * scale, pyramid, retain_graph=True, allow_unused=True)
    pairs = zip(parts, pyramid, strict=True)
    return [
        torch.zeros_like(maps, dtype=torch.float32) if part is None else part.float() / scale for part, maps in pairs
    ]

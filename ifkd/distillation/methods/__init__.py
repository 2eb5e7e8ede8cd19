"""Distillation methods by name."""

from collections.abc import Callable
from typing import Any

from ifkd import recipe
from ifkd.distillation.methods.arsd import Arsd
from ifkd.distillation.methods.attention_transfer import AttentionTransfer
from ifkd.distillation.methods.crosskd import CrossKd
from ifkd.distillation.methods.cwd import Cwd
from ifkd.distillation.methods.fgd import Fgd
from ifkd.distillation.methods.fitnet import FitNet
from ifkd.distillation.methods.fkd import Fkd
from ifkd.distillation.methods.frs import Frs
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.distillation.methods.insdist import InsDist
from ifkd.distillation.methods.method import Method, NetworkPair, Term
from ifkd.distillation.methods.none import NoDistillation
from ifkd.distillation.methods.pkd import Pkd

__all__ = ["METHODS", "Method", "NetworkPair", "Term", "build_method"]

METHODS: dict[str, Callable[[Any, NetworkPair], Method]] = {
    "ifkd": IfkdMethod,
    "none": NoDistillation,
    "fitnet": FitNet,
    "at": AttentionTransfer,
    "fkd": Fkd,
    "fgd": Fgd,
    "frs": Frs,
    "arsd": Arsd,
    "insdist": InsDist,
    "pkd": Pkd,
    "cwd": Cwd,
    "crosskd": CrossKd,
}
"""Name in a recipe -> how the method is built from its options and the networks it stands between."""


def build_method(config: recipe.MethodOptions, student: NetworkPair) -> Method:
    """Return the method a recipe names."""
    method = METHODS[config.name](config, student)
    method.between = student
    return method

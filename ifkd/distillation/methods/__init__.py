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
from ifkd.distillation.methods.method import Method, NetworkPair, NoDistillation, Term
from ifkd.distillation.methods.pkd import Pkd

__all__ = ["METHODS", "IfkdMethod", "Method", "NetworkPair", "NoDistillation", "Term", "build_method"]

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
"""Name in a recipe -> the method's class."""


def build_method(config: recipe.MethodOptions, networks: NetworkPair) -> Method:
    """Return the method that a recipe names."""
    return METHODS[config.name](config, networks)

"""Distillation methods by name."""

from collections.abc import Callable
from typing import Any

from ifkd import recipe
from ifkd.distillation.methods import arsd, attention_transfer, crosskd, cwd, fgd, fitnet, fkd, frs, insdist, pkd
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.distillation.methods.method import Method, NetworkPair, NoDistillation, Term

__all__ = ["METHODS", "IfkdMethod", "Method", "NetworkPair", "NoDistillation", "Term", "build_method"]

METHODS: dict[str, Callable[[Any, NetworkPair], Method]] = {
    "ifkd": IfkdMethod,
    "none": NoDistillation,
    "fitnet": fitnet.FitNet,
    "at": attention_transfer.AttentionTransfer,
    "fkd": fkd.Fkd,
    "fgd": fgd.Fgd,
    "frs": frs.Frs,
    "arsd": arsd.Arsd,
    "insdist": insdist.InsDist,
    "pkd": pkd.Pkd,
    "cwd": cwd.Cwd,
    "crosskd": crosskd.CrossKd,
}
"""Name in a recipe -> the method's class."""


def build_method(config: recipe.MethodOptions, networks: NetworkPair) -> Method:
    """Return the method that a recipe names."""
    return METHODS[config.name](config, networks)

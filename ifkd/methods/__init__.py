"""Distillation methods by name."""

from collections.abc import Callable
from typing import Any

from ifkd import recipe
from ifkd.methods.arsd import Arsd
from ifkd.methods.attention import AttentionTransfer
from ifkd.methods.crosskd import CrossKd
from ifkd.methods.cwd import Cwd
from ifkd.methods.fgd import Fgd
from ifkd.methods.fitnet import FitNet
from ifkd.methods.fkd import Fkd
from ifkd.methods.frs import Frs
from ifkd.methods.ifkd import IfkdMethod
from ifkd.methods.insdist import InsDist
from ifkd.methods.method import Method, Student, Term
from ifkd.methods.none import NoDistillation
from ifkd.methods.pkd import Pkd

__all__ = ["METHODS", "Method", "Student", "Term", "build_method"]

METHODS: dict[str, Callable[[Any, Student], Method]] = {
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


def build_method(config: recipe.MethodOptions, student: Student) -> Method:
    """Return the method a recipe names."""
    method = METHODS[config.name](config, student)
    method.between = student
    return method

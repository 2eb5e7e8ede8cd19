"""Distillation methods by name."""

from collections.abc import Callable
from typing import Any

from ifkd import recipe
from ifkd.methods.ifkd import IfkdMethod
from ifkd.methods.method import Method, Student, Term
from ifkd.methods.none import NoDistillation

__all__ = ["METHODS", "Method", "Student", "Term", "build_method"]

METHODS: dict[str, Callable[[Any, Student], Method]] = {"ifkd": IfkdMethod, "none": NoDistillation}
"""Name in a recipe -> how the method is built from its options and the networks it stands between."""


def build_method(config: recipe.Ifkd | recipe.NoMethod, student: Student) -> Method:
    """Return the method a recipe names."""
    return METHODS[config.name](config, student)

"""Measured value of a benchmark, with its goal."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and its goal."""

    section: str
    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the goal, if any, is met."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def line(self) -> str:
        """Return the value and the goal as text."""
        limits = [f"at most {self.at_most:g}"] if self.at_most is not None else []
        limits += [f"at least {self.at_least:g}"] if self.at_least is not None else []
        goal = f" ({', '.join(limits)}: {'met' if self.passed else 'MISSED'})" if limits else ""
        return f"{self.section:>10}  {self.name}: {self.value:.4g} {self.unit}{goal}"

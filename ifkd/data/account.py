"""Account of a conversion, a fixed copy or a tiling: the outcome of every image and object that came in."""

from collections import Counter
from dataclasses import dataclass, field

from pydantic import NonNegativeInt, model_validator

from ifkd.core.config import Schema

EXAMPLES = 8
"""Examples of each reason."""
EXAMPLES_PRINTED = 3
LONGEST_EXAMPLE = 300


class Tally(Schema):
    """Outcomes of the images or of the objects, one for each; a new id is no change."""

    received: NonNegativeInt
    kept: NonNegativeInt
    """Written as they were."""
    changed: dict[str, int]
    """Written with a change, by reason; several reasons for one are joined by a comma."""
    dropped: dict[str, int]
    """Left out, by reason."""
    examples: dict[str, tuple[str, ...]] = {}
    """Reason -> the first of them."""

    @property
    def written(self) -> int:
        """Number that was written."""
        return self.kept + sum(self.changed.values())

    @property
    def left_out(self) -> int:
        """Number that was left out."""
        return sum(self.dropped.values())

    @model_validator(mode="after")
    def _check_sum(self) -> "Tally":
        assert self.received == self.written + self.left_out, f"the outcomes do not sum up: {self}"
        return self

    def text(self, name: str) -> str:
        """Return the counts in one line; `name` is what is counted, in the plural."""
        parts = [f"{self.received} {name if self.received != 1 else name[:-1]}: {self.kept} unchanged"]
        for label, reasons in (("changed", self.changed), ("left out", self.dropped)):
            counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items())
            parts.append(f"{sum(reasons.values())} {label}" + (f" ({counts})" if counts else ""))
        return ", ".join(parts)


class Account(Schema):
    """Outcomes of all images and objects that came in."""

    images: Tally
    objects: Tally
    """Annotations, those of ignored regions included."""

    def lines(self) -> list[str]:
        """Return the account as text for a terminal, with examples of what was changed or left out."""
        lines = [self.images.text("images"), self.objects.text("objects")]
        examples = {**self.images.examples, **self.objects.examples}
        shown = [(reason, one) for reason, some in examples.items() for one in some[:EXAMPLES_PRINTED]]
        return lines + [f"  {reason.replace('_', ' ')}: {one}" for reason, one in shown]


@dataclass(slots=True)
class Outcomes:
    """Collector of a tally: everything that is neither changed nor dropped is kept."""

    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def change(self, reason: str, example: str | None = None) -> None:
        """Count one that is written with a change."""
        self.changed[reason] += 1
        self._add_example(reason, example)

    def drop(self, reason: str, example: str | None = None, *, count: int = 1) -> None:
        """Count some that are left out."""
        self.dropped[reason] += count
        self._add_example(reason, example)

    def tally(self, *, received: int, written: int) -> Tally:
        """Return the tally of `received`, counted where they came in, and `written`, counted in the output."""
        kept = received - self.changed.total() - self.dropped.total()
        examples = {reason: tuple(some) for reason, some in sorted(self.examples.items())}
        changed, dropped = (dict(sorted((+one).items())) for one in (self.changed, self.dropped))
        tally = Tally(received=received, kept=kept, changed=changed, dropped=dropped, examples=examples)
        assert tally.written == written, f"{written} were written, which is not the sum of {tally}"
        return tally

    def _add_example(self, reason: str, example: str | None) -> None:
        if example is not None and len(some := self.examples.setdefault(reason, [])) < EXAMPLES:
            some.append(printable(example))


def printable(text: str) -> str:
    """Return untrusted text in one line of printable characters, shortened if it is long."""
    plain = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return plain if len(plain) <= LONGEST_EXAMPLE else f"{plain[: LONGEST_EXAMPLE - 1]}…"

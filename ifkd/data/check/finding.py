"""Findings of a check: collected one by one, and reported by kind and split."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ifkd.core.config import Schema
from ifkd.data.check.finding_kinds import KINDS, SEVERITIES, Severity

EXAMPLES = 8
LONGEST_EXAMPLE = 300
LISTED = 8


class Finding(Schema):
    """All findings of one kind in one split."""

    kind: str
    severity: Severity
    split: str
    """One split, or two joined by "and"."""
    count: int
    title: str
    """What is counted."""
    examples: tuple[str, ...]
    """The first of them."""
    suggestion: str | None = None
    """Probable cause, derived from this data set's numbers."""
    hint: str
    """How to fix it."""
    fix: str | None
    """What the fixed copy does; None if a person must decide."""


@dataclass(slots=True)
class Findings:
    """Collector of findings."""

    _examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _suggestions: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, kind: str, split: str, example: str) -> None:
        """Count one of a kind in a split."""
        self._counts[kind, split] = self._counts.get((kind, split), 0) + 1
        examples = self._examples.setdefault((kind, split), [])
        if len(examples) < EXAMPLES:
            examples.append(printable(example))

    def suggest(self, kind: str, split: str, text: str) -> None:
        """Add a probable cause of the findings of a kind."""
        self._suggestions[kind, split] = text

    def all(self) -> tuple[Finding, ...]:
        """Return all findings by severity, then in the order of `KINDS`."""
        order = {kind: index for index, kind in enumerate(KINDS)}
        found = [
            Finding(
                kind=kind,
                severity=KINDS[kind].severity,
                split=split,
                count=count,
                title=KINDS[kind].title,
                examples=tuple(self._examples[kind, split]),
                suggestion=self._suggestions.get((kind, split)),
                hint=KINDS[kind].hint,
                fix=KINDS[kind].fix,
            )
            for (kind, split), count in self._counts.items()
        ]
        return tuple(sorted(found, key=lambda one: (SEVERITIES.index(one.severity), order[one.kind])))


def printable(text: str) -> str:
    """Return untrusted text in one line of printable characters, shortened if it is long."""
    plain = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return plain if len(plain) <= LONGEST_EXAMPLE else f"{plain[: LONGEST_EXAMPLE - 1]}…"


def first_few(items: Iterable[object]) -> str:
    """Return the first few items, and how many more there are."""
    words = [str(item) for item in items]
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more

"""Progress of long work, with the time left: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_PLAIN_LINES = 10.0


class _PlainLines:
    """A stream that turns a bar's carriage returns into lines of their own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self._stream.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


def progress(total: int, label: str, *, unit: str = "it", initial: int = 0, silent: bool = False) -> "tqdm[Any]":
    """Return a bar of `total` steps on stderr; call `update(n)` on it, and close it or use it in a `with`."""
    plain = not sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        initial=initial,
        disable=silent,
        file=_PlainLines(sys.stderr) if plain else sys.stderr,
        mininterval=SECONDS_BETWEEN_PLAIN_LINES if plain else 0.2,
        ncols=100 if plain else None,
        dynamic_ncols=not plain,
    )


def track(items: Iterable[T], label: str, *, total: int, unit: str = "it") -> Iterator[T]:
    """Yield `items` and show how far along they are."""
    with progress(total, label, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()

"""Progress bars on a terminal, and progress lines elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_INTERVAL_S = 10.0


class _LineStream:
    """A stream that writes each update of a progress bar as a line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self._stream.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


def progress(total: int, label: str, *, unit: str = "it", initial: int = 0, silent: bool = False) -> "tqdm[Any]":
    """Return a progress bar of `total` steps on stderr; use it in a `with` and call `update(n)`."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        initial=initial,
        disable=silent,
        file=sys.stderr if terminal else _LineStream(sys.stderr),
        mininterval=0.2 if terminal else LINE_INTERVAL_S,
        ncols=None if terminal else 100,
        dynamic_ncols=terminal,
    )


def track(items: Iterable[T], label: str, *, total: int, unit: str = "it") -> Iterator[T]:
    """Yield `items` with a progress bar."""
    with progress(total, label, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()

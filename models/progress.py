"""A progress bar: tqdm's where it is installed, else a plain one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

# A terminal redraws one line; a log file gets a line now and then.
_TERMINAL_INTERVAL = 0.1
_LOG_INTERVAL = 10.0


class Bar(Protocol):
    """What a bar can do."""

    def update(self, n: int = 1) -> object: ...

    def set_postfix_str(self, s: str, refresh: bool = True) -> object: ...


class _Silent:
    def update(self, n: int = 1) -> None:
        pass

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        pass


class PlainBar:
    """``label [####......] 40/100 loss 1.2``, on stderr."""

    def __init__(self, label: str, total: int, initial: int, interval: float) -> None:
        self.label, self.total, self.done, self.interval = label, total, initial, interval
        self.postfix = ""
        self._drawn = 0.0

    def update(self, n: int = 1) -> None:
        self.done += n
        if time.monotonic() - self._drawn >= self.interval:
            self.draw()

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        self.postfix = s

    def draw(self) -> None:
        filled = 30 * self.done // max(self.total, 1)
        line = f"{self.label} [{'#' * filled}{'.' * (30 - filled)}] {self.done}/{self.total} {self.postfix}"
        end = "\r" if sys.stderr.isatty() else "\n"
        print(line, end=end, file=sys.stderr, flush=True)
        self._drawn = time.monotonic()


@contextmanager
def progress_bar(label: str, total: int, initial: int = 0, enabled: bool = True) -> Iterator[Bar]:
    """Shows how many of `total` batches are done; a disabled bar shows nothing."""
    if not enabled:
        yield _Silent()
        return
    interval = _TERMINAL_INTERVAL if sys.stderr.isatty() else _LOG_INTERVAL
    try:
        from tqdm import tqdm
    except ImportError:
        bar = PlainBar(label, total, initial, interval)
        yield bar
        bar.draw()
        if sys.stderr.isatty():
            print(file=sys.stderr)
        return
    with tqdm(
        desc=label, total=total, initial=initial, unit="batch", mininterval=interval, dynamic_ncols=True
    ) as bar:
        yield bar

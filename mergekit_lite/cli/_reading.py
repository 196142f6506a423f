"""Shows how far a command that only reads has come; everything goes to stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mergekit_lite.cli._output import bytes_text, note
from mergekit_lite.cli._progress import LINE_EVERY


@contextmanager
def reading(total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes byte counts, from any thread, and shows their sum.

    On a terminal that is a bar which goes away at the end, elsewhere a line every few seconds.

    Args:
        total: bytes that will be read, about.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = (BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total or None)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(total)


class _Lines:
    def __init__(self, total: int) -> None:
        self.total, self.read = total, 0
        self.began = self.shown = time.monotonic()
        self.lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self.lock:
            self.read += count
            now = time.monotonic()
            if now - self.shown < LINE_EVERY:
                return
            self.shown = now
            share = 100 * self.read / self.total if self.total else 0.0
            speed = bytes_text(self.read / (now - self.began))
            note(f"{share:3.0f}%  {bytes_text(self.read)} of {bytes_text(self.total)}  {speed}/s")

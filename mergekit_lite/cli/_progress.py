"""The one sink for what a run reports while it works; everything goes to stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

from mergekit_lite.cli._output import bytes_text, seconds_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from mergekit_lite.engine.events import Event

LINE_EVERY = 5.0
"""Seconds between two progress lines where there is no terminal."""

WIDE = 130
"""Columns of a terminal from which on the bar has room for a tensor's name."""

Style = Literal["bar", "lines", "json", "quiet"]


def choose_style(log_format: str, quiet: bool, stream: TextIO) -> Style:
    """Return how to report on `stream`: a bar on a terminal, lines elsewhere."""
    if log_format == "json":
        return "json"
    if quiet:
        return "quiet"
    return "bar" if stream.isatty() else "lines"


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class ProgressSink:
    """Receives the events of a run, from any thread, and shows them.

    Args:
        style: what to show; `choose_style` picks one.
        stream: where to show it; stderr by default.
    """

    def __init__(self, style: Style, stream: TextIO | None = None) -> None:
        self.style = style
        self.stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._shown = 0.0
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_bar()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self.style == "json":
                self._json(event)
            elif self.style != "quiet":
                self._human(event)

    def note(self, text: str) -> None:
        """Show a sentence of the command line itself, in the style of the run's own notes."""
        from mergekit_lite.engine.events import Event

        self(Event("note", text=text))

    def _due(self, every: float) -> bool:
        now = time.monotonic()
        if now - self._shown < every:
            return False
        self._shown = now
        return True

    def _json(self, event: Event) -> None:
        if event.kind in ("progress", "sweep") and not self._due(LINE_EVERY):
            return
        line = {
            "ts": round(time.time(), 3),
            "event": event.kind,
            "seconds": round(event.seconds, 3),
            "bytes_read": event.bytes_read,
            "bytes_written": event.bytes_written,
            "bytes_total": event.bytes_total,
            "shard": event.shard,
            "shards": event.shards,
            "name": event.name,
            "text": event.text,
            "rss": resident_bytes(),
        }
        print(json.dumps(line), file=self.stream, flush=True)

    def _human(self, event: Event) -> None:
        if event.kind == "start":
            self._shown = time.monotonic()
            if self.style == "bar":
                self._start_bar(event)
        elif event.kind == "sweep":
            self._sweep(event)
        elif event.kind == "note":
            self._print(event.text)
        elif self._bar is not None:
            self._move_bar(event)
            if event.kind == "done":
                self._stop_bar()
        elif event.kind == "progress" and self._due(LINE_EVERY):
            self._print(progress_line(event))
        if event.kind == "done":
            self._print(summary_line(event))

    def _sweep(self, event: Event) -> None:
        """Show how far a sweep over the whole model has come, by what it has read."""
        read = min(event.bytes_read, event.bytes_total)
        if self.style == "bar":
            if self._bar is None or read == 0:
                self._start_bar(event)
            if self._bar is not None:
                text = f"statistics for {event.text}"
                self._bar.update(self._bar.task_ids[0], completed=read, description=text)
        elif read == 0:
            self._shown = time.monotonic()
        elif self._due(LINE_EVERY):
            self._print(sweep_line(event))

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def _start_bar(self, event: Event) -> None:
        self._stop_bar()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", markup=False),
            console=Console(file=self.stream),
            transient=True,
        )
        self._bar.add_task("", total=event.bytes_total or None)
        self._bar.start()

    def _move_bar(self, event: Event) -> None:
        if self._bar is None:
            return
        parts = [f"shard {event.shard}/{event.shards}", event.name, bytes_text(resident_bytes())]
        if self._bar.console.width < WIDE:
            del parts[1]  # else the bar itself would be squeezed out
        text = "  ".join(parts)
        total = event.bytes_total or None
        self._bar.update(
            self._bar.task_ids[0], completed=event.bytes_written, total=total, description=text
        )

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_line(event: Event) -> str:
    """Return one line that says how far a run has come, how fast, and how long it will take."""
    speed = (event.bytes_read + event.bytes_written) / event.seconds if event.seconds > 0 else 0.0
    done = event.bytes_written / event.bytes_total if event.bytes_total else 0.0
    left = seconds_text(event.seconds * (1 / done - 1)) if done else "?"
    parts = [
        f"{100 * done:3.0f}%",
        f"{bytes_text(event.bytes_written)} of {bytes_text(event.bytes_total)} written",
        f"{bytes_text(speed)}/s",
        f"{left} left",
        f"shard {event.shard}/{event.shards}",
        event.name,
        f"{bytes_text(resident_bytes())} memory",
    ]
    return "  ".join(part for part in parts if part)


def sweep_line(event: Event) -> str:
    """Return one line that says how far a sweep over the whole model has come."""
    read = min(event.bytes_read, event.bytes_total)
    done = read / event.bytes_total if event.bytes_total else 0.0
    speed = event.bytes_read / event.seconds if event.seconds > 0 else 0.0
    left = seconds_text(event.seconds * (1 / done - 1)) if done else "?"
    parts = [
        f"{100 * done:3.0f}%",
        f"{bytes_text(read)} of {bytes_text(event.bytes_total)} swept for {event.text}",
        f"{bytes_text(speed)}/s",
        f"{left} left",
        event.name,
        f"{bytes_text(resident_bytes())} memory",
    ]
    return "  ".join(part for part in parts if part)


def summary_line(event: Event) -> str:
    """Return the line that closes a run."""
    moved = event.bytes_read + event.bytes_written
    speed = f", {bytes_text(moved / event.seconds)}/s" if event.seconds > 0 else ""
    return (
        f"read {bytes_text(event.bytes_read)}, wrote {bytes_text(event.bytes_written)} "
        f"in {seconds_text(event.seconds)}{speed}"
    )

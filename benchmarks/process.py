"""Run a command and measure it as a whole: wall time, processor time and memory of its tree."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Usage:
    """What one run of a command took.

    Attributes:
        wall: seconds from start to exit, interpreter start-up included.
        cpu: seconds of processor time, user and system, of the whole tree.
        peak: peak resident bytes of the largest process, as the kernel counted it.
        tree: highest sum of resident bytes over the process tree, sampled.
        anonymous: highest sum of resident bytes that belong to no file, sampled.
    """

    wall: float
    cpu: float
    peak: int
    tree: int
    anonymous: int


class CommandFailed(RuntimeError):
    """A measured command did not exit 0; its figures would mean nothing."""


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                # The command name, in parentheses, may hold spaces.
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        found.setdefault(parent, []).append(int(entry))
    return found


def _resident(pid: int) -> tuple[int, int, int]:
    """Return (all, anonymous, at its peak) resident bytes of one process; zeros once it is gone."""
    total = anonymous = peak = 0
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    total = int(line.split()[1]) * 1024
                elif line.startswith("RssAnon:"):
                    anonymous = int(line.split()[1]) * 1024
                elif line.startswith("VmHWM:"):
                    peak = int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        return 0, 0, 0
    return total, anonymous, peak


class _Watch(threading.Thread):
    """Samples the memory of a process tree until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.tree = 0
        self.anonymous = 0
        # Not what `wait4` says, which of a new process is at least what its parent has.
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            children = _children()
            waiting, total, anonymous = [self.pid], 0, 0
            while waiting:
                pid = waiting.pop()
                waiting += children.get(pid, [])
                resident, private, peak = _resident(pid)
                total, anonymous = total + resident, anonymous + private
                if pid == self.pid:
                    self.peak = max(self.peak, peak)
            self.tree = max(self.tree, total)
            self.anonymous = max(self.anonymous, anonymous)


def measure(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Usage:
    """Run `command` to its end and return what it took; its output goes to `log`.

    Call it from a small process: Linux counts the memory of the process that starts a command
    into that command's peak.

    Raises:
        CommandFailed: the command did not exit 0; the message ends with its last lines.
    """
    # Bytecode is kept, as for every installed program: neither side compiles its source each time.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with log.open("wb") as sink:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**kept, **(environment or {})},
        )
        watch = _Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        watch.over.set()
        watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise CommandFailed(f"{' '.join(command)}\nexited {process.returncode}:\n{tail}")
    return Usage(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=watch.peak,
        tree=max(watch.peak, watch.tree),
        anonymous=watch.anonymous,
    )

"""The command as a process of its own, which can be killed and measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.kernels._jit import kernel_folder

ROOT = Path(__file__).parents[2]
# Not what `getrusage` says, which of a new process is at least what its parent has.
TELL_PEAK = """
import atexit, sys
def tell():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print(line.strip(), file=sys.stderr)
atexit.register(tell)
"""


def environment(cache: Path) -> dict[str, str]:
    """Return an environment with a cache of its own, but with the kernels compiled before."""
    cache.mkdir(parents=True, exist_ok=True)
    kernels = cache / "kernels"
    if not kernels.exists():
        kernels.symlink_to(kernel_folder().parent.resolve())
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MERGEKIT_LITE")}
    return {**clean, "MERGEKIT_LITE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Ended:
    """What a process has left: its exit status and what it said."""

    code: int
    said: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that it told as JSON lines."""
        return [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]


class Command:
    """`mergekit-lite run`, started in a folder; what it tells can be waited for.

    Args:
        folder: working folder, with the recipe.
        words: arguments after `run`.
        cache: the cache folder.
        before: Python statements that are run in the process before the command.
    """

    def __init__(
        self, folder: Path, words: Sequence[object], *, cache: Path, before: str = ""
    ) -> None:
        # A test run in the background of a shell is deaf to Ctrl-C, and so would its children be.
        hear = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
        start = ["-c", f"{hear}\n{before}\nfrom mergekit_lite.cli.main import main\nmain()"]
        self.began = time.monotonic()
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *start, "run", *map(str, words), "--log-format", "json"],
            cwd=folder,
            env=environment(cache),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, event: str) -> float:
        """Wait until it tells an event of this kind; return the time since its start."""
        for line in self._read():
            if f'"event": "{event}"' in line:
                break
        return time.monotonic() - self.began

    def _read(self) -> Iterator[str]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            yield line

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait for its end."""
        for _ in self._read():
            pass
        code = self.process.wait(120)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return Ended(code, "".join(self._lines))


def told_peak(said: str) -> int:
    """Return the most resident bytes of a process that began with `TELL_PEAK`."""
    (line,) = (line for line in said.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

"""The one place where an exception becomes a message on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from mergekit_lite.errors import Interrupted, MergekitLiteError, ResourceError

DEBUG = "MERGEKIT_LITE_DEBUG"
RESUME = "stopped; run the same command again to resume"


def guard(action: Callable[[], Any]) -> int:
    """Run `action` and return the exit code; whatever it raises is explained on stderr."""
    try:
        action()
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        # The reader has left (`... | head`); a second failure at shutdown would print a warning.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (KeyboardInterrupt, click.Abort, Exception) as error:
        if os.environ.get(DEBUG, "") not in ("", "0"):
            traceback.print_exc()
        text, code = explain(error)
        print(text, file=sys.stderr)
        return code
    return 0


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an exception."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return RESUME, Interrupted.exit_code
    if isinstance(error, Interrupted):
        return str(error) if "again" in str(error) else f"{error}\n{RESUME}", error.exit_code
    if isinstance(error, MergekitLiteError):
        return numbered(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _usage(error), error.exit_code
    if isinstance(error, MemoryError):
        return "error: out of memory\n    lower --max-memory or --threads", ResourceError.exit_code
    if isinstance(error, OSError):
        return _system(error)
    kind = type(error).__name__
    hint = f"this is a defect; {DEBUG}=1 shows where it happened"
    return f"error: {kind}: {error}\n    {hint}", MergekitLiteError.exit_code


def numbered(error: MergekitLiteError) -> str:
    """Return all problems of an error, counted where there are several."""
    if len(error.problems) == 1:
        return f"error: {error.problems[0]}"
    lines = [f"error: {len(error.problems)} problems"]
    for number, problem in enumerate(error.problems, 1):
        text = str(problem).replace("\n", "\n   ")
        lines.append(f"{number:>3}. {text}")
    return "\n".join(lines)


def _usage(error: click.ClickException) -> str:
    text = f"error: {error.format_message()}"
    context = getattr(error, "ctx", None)
    if context is not None:
        text += f"\n    try: {context.command_path} --help"
    return text


def _system(error: OSError) -> tuple[str, int]:
    import errno

    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    hints = {
        errno.ENOSPC: "free some space, then run the same command again to resume",
        errno.EDQUOT: "the quota is used up; free some space, then run the same command again",
        errno.EACCES: "no permission; choose another folder or change its mode",
        errno.EROFS: "the file system is read-only; choose another folder",
    }
    hint = hints.get(error.errno or 0)
    if hint is None:
        return f"error: {place}{reason}", MergekitLiteError.exit_code
    return f"error: {place}{reason}\n    {hint}", ResourceError.exit_code

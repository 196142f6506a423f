"""The one place where an exception becomes a message on stderr and an exit code."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import click

from mergekit_lite.errors import Interrupted, MergekitLiteError, Problem, ResourceError

DEBUG = "MERGEKIT_LITE_DEBUG"
RESUME = "run the same command again to resume"


def guard(action: Callable[[], Any], *, as_json: bool = False) -> int:
    """Run `action` and return the exit code; whatever it raises is explained on stderr.

    Args:
        action: what to run.
        as_json: explain by a JSON object a line, one for each problem, instead of sentences.
    """
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
        print(json_lines(error) if as_json else text, file=sys.stderr)
        return code
    return 0


def wants_json(words: Sequence[str]) -> bool:
    """Return whether a command line asks for `--log-format json`, be it sound or not."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an exception."""
    found, code = told(error)
    if code == Interrupted.exit_code:
        return "\n".join(map(str, found)), code
    return numbered(found), code


def json_lines(error: BaseException) -> str:
    """Return what an exception says as one JSON object for each problem, a line each."""
    found, code = told(error)
    lines = [
        {
            "ts": round(time.time(), 3),
            "event": "error",
            "what": problem.what,
            "where": problem.where,
            "hint": problem.hint,
            "exit_code": code,
        }
        for problem in found
    ]
    return "\n".join(map(json.dumps, lines))


def told(error: BaseException) -> tuple[tuple[Problem, ...], int]:
    """Return the problems that an exception tells of, and its exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return (Problem("stopped", hint=RESUME),), Interrupted.exit_code
    if isinstance(error, Interrupted):
        resumable = "again" in str(error)
        found = error.problems if resumable else (replace(error.problems[-1], hint=RESUME),)
        return found, error.exit_code
    if isinstance(error, MergekitLiteError):
        return error.problems, error.exit_code
    if isinstance(error, click.ClickException):
        return (_usage(error),), error.exit_code
    if isinstance(error, MemoryError):
        hint = "lower --max-memory or --threads"
        return (Problem("out of memory", hint=hint),), ResourceError.exit_code
    if isinstance(error, OSError):
        return _system(error)
    hint = f"this is a defect; {DEBUG}=1 shows where it happened"
    what = f"{type(error).__name__}: {error}"
    return (Problem(what, hint=hint),), MergekitLiteError.exit_code


def numbered(problems: Sequence[Problem]) -> str:
    """Return all problems of an error, counted where there are several."""
    if len(problems) == 1:
        return f"error: {problems[0]}"
    lines = [f"error: {len(problems)} problems"]
    for number, problem in enumerate(problems, 1):
        text = str(problem).replace("\n", "\n   ")
        lines.append(f"{number:>3}. {text}")
    return "\n".join(lines)


def _usage(error: click.ClickException) -> Problem:
    context = getattr(error, "ctx", None)
    hint = "" if context is None else f"try: {context.command_path} --help"
    return Problem(error.format_message(), hint=hint)


def _system(error: OSError) -> tuple[tuple[Problem, ...], int]:
    import errno

    place = str(error.filename or "")
    reason = error.strerror or str(error)
    hints = {
        errno.ENOSPC: "free some space, then run the same command again to resume",
        errno.EDQUOT: "the quota is used up; free some space, then run the same command again",
        errno.EACCES: "no permission; choose another folder or change its mode",
        errno.EROFS: "the file system is read-only; choose another folder",
    }
    hint = hints.get(error.errno or 0, "")
    code = ResourceError.exit_code if hint else MergekitLiteError.exit_code
    return (Problem(reason, place, hint),), code

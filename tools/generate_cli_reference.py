"""Write docs/cli.md from the command tree; with `--check`, fail if it is out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mergekit_lite.cli.main import main as program  # noqa: E402

TARGET = ROOT / "docs" / "cli.md"
HEAD = """# The command line

<!-- Written by tools/generate_cli_reference.py; change the commands, not this page. -->

Data goes to stdout and everything else to stderr, so every verb can be piped. On a terminal a run
shows a bar; elsewhere it prints a line every five seconds, or with `--log-format json` one JSON
object a line. `MERGEKIT_LITE_DEBUG=1` adds tracebacks to errors.

| exit code | meaning |
|---|---|
| 0 | done: what was asked for is on disk |
| 1 | failed |
| 2 | the recipe, the command line or the shape of the inputs is wrong; nothing was written |
| 3 | data: corrupt or non-finite bytes, a score below its bound, or `verify` found a difference |
| 4 | not enough disk, memory or permission |
| 5 | a model is missing or unreachable |
| 130 | interrupted; the same command again resumes |
"""


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """Yield the context of a command and of all below it."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from commands(found, click.Context(found, info_name=name, parent=context))


def text() -> str:
    """Return the whole page."""
    root = click.Context(program, info_name="mergekit-lite", **program.context_settings)
    # The width of the terminal at hand must not change the page.
    root.terminal_width = 100
    parts = [HEAD]
    for context in commands(program, root):
        context.terminal_width = 100
        level = "##" if context.parent in (None, root) else "###"
        usage = context.command.get_help(context)
        parts.append(f"{level} {context.command_path}\n\n```text\n{usage}\n```\n")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    if parser.parse_args().check:
        fresh = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text()
        if not fresh:
            print(f"{TARGET.relative_to(ROOT)} is out of date", file=sys.stderr)
        return 0 if fresh else 1
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

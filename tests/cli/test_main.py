"""The group of verbs: help, lazy imports, usage errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mergekit_lite
from mergekit_lite.cli.main import VERBS

from .conftest import Call

HEAVY = {"torch", "transformers", "numba", "peft", "scipy"}


def imported_by(*words: str | Path) -> set[str]:
    """Return the heavy packages that a fresh process has imported after a command."""
    script = (
        "import sys\n"
        "from mergekit_lite.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:], prog_name='mergekit-lite')\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        f"print(code, *sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=True
    )
    code, *found = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return set(found)


def test_help_imports_nothing_heavy_and_no_pydantic() -> None:
    assert imported_by("--help") == set()


def test_schema_imports_nothing_heavy() -> None:
    assert imported_by("schema") == set()


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_check_and_plan_import_nothing_heavy(verb: str, recipe: Path) -> None:
    assert imported_by(verb, recipe) == set()


def test_help_lists_every_verb_with_its_help(call: Call) -> None:
    result = call("--help")
    assert result.exit_code == 0
    for verb, text in VERBS.items():
        assert verb in result.stdout
        assert text in result.stdout


def test_static_help_is_that_of_the_command() -> None:
    from mergekit_lite.cli.main import main

    for verb, text in VERBS.items():
        command = main.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        assert command.get_short_help_str(200).rstrip(".") == text.rstrip(".")


def test_version(call: Call) -> None:
    assert mergekit_lite.__version__ in call("--version").stdout


def test_no_verb_shows_help(call: Call) -> None:
    result = call()
    assert result.exit_code == 0
    assert "Verbs:" in result.stdout


def test_unknown_verb_names_the_nearest(call: Call) -> None:
    result = call("verfy")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "did you mean `verify`?" in result.stderr


def test_unknown_option_is_usage(call: Call, recipe: Path) -> None:
    result = call("plan", recipe, "--expnad")
    assert result.exit_code == 2
    assert "--expand" in result.stderr
    assert "mergekit-lite" not in result.stdout


def test_python_interface_is_lazy_and_plan_is_room_and_function() -> None:
    script = (
        "import sys, mergekit_lite\n"
        "assert 'mergekit_lite.api' not in sys.modules\n"
        "assert callable(mergekit_lite.plan) and callable(mergekit_lite.load)\n"
        "import mergekit_lite.plan.types\n"
        "assert callable(mergekit_lite.plan) and mergekit_lite.plan.types.Plan\n"
        "try:\n    mergekit_lite.nothing\nexcept AttributeError:\n    print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr

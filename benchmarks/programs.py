"""The two programs under test: how each is called, and the environment the peer lives in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = "mergekit==0.1.5"


@dataclass(frozen=True)
class Program:
    """A command line merge tool.

    Attributes:
        name: as the table calls it.
        python: the interpreter it runs on.
        start: the words that start it.
        options: words put after recipe and output folder.
        environment: variables it is run with.
    """

    name: str
    python: Path
    start: tuple[str, ...]
    options: tuple[str, ...]
    environment: Mapping[str, str]

    def merge(self, recipe: Path, out: Path) -> list[str]:
        """Return the command that merges `recipe` into the folder `out`."""
        return [*self.start, str(recipe), *self.options, str(out)]

    def versions(self, *packages: str) -> dict[str, str]:
        """Return the installed version of each of `packages`."""
        script = (
            "import importlib.metadata as m, json, platform, sys\n"
            "def v(n):\n"
            "    try: return m.version(n)\n"
            "    except m.PackageNotFoundError: return 'not installed'\n"
            "print(json.dumps({'python': platform.python_version(), "
            "**{n: v(n) for n in sys.argv[1:]}}))"
        )
        command = [str(self.python), "-c", script, *packages]
        found: dict[str, str] = json.loads(subprocess.check_output(command))
        return found


def ours(cache: Path) -> Program:
    """Return this project, with compiled kernels and remembered checksums kept under `cache`."""
    script = Path(sys.executable).with_name("mergekit-lite")
    code = "from mergekit_lite.cli.main import main; main()"
    start = (str(script),) if script.exists() else (sys.executable, "-c", code)
    environment = {"MERGEKIT_LITE_CACHE": str(cache)}
    if not script.exists():
        environment["PYTHONPATH"] = str(ROOT)
    python = Path(sys.executable)
    return Program("mergekit-lite", python, (*start, "run"), ("-o",), environment)


def peer(python: Path) -> Program:
    """Return the peer that is installed beside this interpreter."""
    script = python.with_name("mergekit-yaml")
    if not script.exists():
        raise SystemExit(f"{python} has no mergekit-yaml beside it; leave --peer-python out")
    # The models carry no tokenizer, and nothing may be looked up on the network.
    environment = {"HF_HUB_OFFLINE": "1"}
    return Program(
        "mergekit", python, (str(script),), ("--no-copy-tokenizer", "--quiet"), environment
    )


def install_peer(folder: Path) -> Path:
    """Make a virtual environment for the peer, unless it is there, and return its interpreter."""
    python = folder / "bin" / "python"
    if not python.with_name("mergekit-yaml").exists():
        print(f"installing {PEER} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # The same pins on both sides: the figures compare programs, not versions of torch.
        # networkx and PyYAML are imported by the peer but not declared by it.
        wanted = ["-c", str(ROOT / "constraints.txt"), PEER, "networkx", "PyYAML"]
        subprocess.run([*install, *wanted], check=True)
    return python


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> Path:
    """Write a recipe as JSON, which both programs read as YAML."""
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path

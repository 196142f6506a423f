"""Run every `tools/generate_*.py`: with `--check` by default, so that nothing generated drifts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="regenerate instead of checking")
    write: bool = parser.parse_args().write
    generators = sorted(TOOLS.glob("generate_*.py"))
    if not generators:
        print("no tools/generate_*.py was found", file=sys.stderr)
        return 1
    failed = []
    for generator in generators:
        command = [sys.executable, str(generator), *([] if write else ["--check"])]
        done = subprocess.run(command, cwd=TOOLS.parent, check=False)
        print(f"{generator.name}: {'failed' if done.returncode else 'ok'}")
        if done.returncode:
            failed.append(generator.name)
    if failed and not write:
        print("out of date; run `make docs` and commit the result", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

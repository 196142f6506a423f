"""`python -m mergekit_lite` is the command `mergekit-lite`."""

from __future__ import annotations

from mergekit_lite.cli.main import main

if __name__ == "__main__":
    main(prog_name="mergekit-lite")

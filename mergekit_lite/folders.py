"""Where this package keeps what it may use again, and how it writes files that people read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


def cache_folder(part: str) -> Path:
    """Return the folder of one part of the cache; it need not exist yet.

    `$MERGEKIT_LITE_CACHE`, else `mergekit-lite` in `$XDG_CACHE_HOME` or `~/.cache`, else in the
    folder for temporary files where none of these can be written.
    """
    if own := os.environ.get("MERGEKIT_LITE_CACHE"):
        return Path(own).expanduser() / part
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    nearest = next((folder for folder in (root, *root.parents) if folder.exists()), root)
    if not os.access(nearest, os.W_OK):
        root = Path(tempfile.gettempdir()) / f"mergekit-lite-{os.getuid()}"
    return root / "mergekit-lite" / part


def write_json(path: Path, value: object) -> None:
    """Write a value as a JSON file that people can read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

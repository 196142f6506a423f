"""Damages weight files on purpose: header, size, index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoints import read_weights, write_weights

INDEX = "model.safetensors.index.json"


def header_of(file: Path) -> dict[str, Any]:
    """Return the header of a sound weight file."""
    data = file.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def rewrite(file: Path, change: Callable[[dict[str, Any]], str | None]) -> None:
    """Replace the header of `file` by what `change` makes of it in place, or returns as text."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    text = change(header)
    raw = (json.dumps(header) if text is None else text).encode()
    raw += b" " * (-len(raw) % 8)
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data[end:])


def sharded(folder: Path, shards: int = 3) -> list[Path]:
    """Store the model in `folder` anew, as several files and an index; return the files."""
    weights = read_weights(folder)
    (folder / "model.safetensors").unlink()
    write_weights(folder, weights, shards=shards)
    return sorted(folder.glob("*.safetensors"))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index of a model with `change`, which works in place."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def edit_config(folder: Path, **changes: object) -> None:
    """Change entries of a model's `config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

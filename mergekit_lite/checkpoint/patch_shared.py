"""Patches that need another beside them: what several experts share is stored once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint._types import Header
from mergekit_lite.checkpoint.parse import read_file_header
from mergekit_lite.checkpoint.patch import KEY
from mergekit_lite.errors import DataError, SourceError

FILE, DIGEST = "shared_file", "shared_sha256"
"""Parameters of a patch that name the file beside it, and the sha256 of its description."""
PREFIX = "shared."
"""What names of parts begin with that are stored in that file."""


def description_digest(metadata: Mapping[str, str]) -> str:
    """Return the sha256 of a patch's description, by which other patches name it."""
    return hashlib.sha256(metadata.get(KEY, "").encode()).hexdigest()


def with_shared(root: Path, header: Header) -> tuple[Path, Header]:
    """Return where a patch's files are, and its header with the parts that it shares.

    Args:
        root: the patch's file.
        header: of that file.

    Returns:
        The same, for a patch that stands alone; else the folder of both files.

    Raises:
        SourceError: the other file is not beside it.
        DataError: that is another file than the one it was made with.
    """
    told = _described(header)
    name, digest = (str(told.get("parameters", {}).get(key, "")) for key in (FILE, DIGEST))
    if not name:
        return root, header
    if Path(name).name != name or not (root.parent / name).is_file():
        raise SourceError(
            f"`{root}` needs `{name}` beside it, which is not there",
            hint="keep the files together that `compress --method rtvq` has made",
        )
    found, metadata, nbytes = read_file_header(root.parent / name, name)
    if description_digest(metadata) != digest:
        raise DataError(
            f"`{name}` is not the file that `{root.name}` was made with",
            str(root.parent),
            "fetch both again, or make them anew",
        )
    sums = _sums(told)
    tensors = dict(header.tensors)
    for key, info in found.items():
        of, _, part = key.rpartition(":")
        if of in sums:
            renamed = f"{of}:{PREFIX}{part}"
            tensors[renamed] = replace(info, name=renamed)
    files = {**header.files, name: nbytes}
    return root.parent, replace(header, tensors=tensors, files=files)


def _sums(told: Mapping[str, Any]) -> set[str]:
    """Return the tensors of which the other file has a part."""
    at = list(told["columns"]).index("scheme")
    return {name for name, row in told["tensors"].items() if str(row[at]).startswith("sum(")}


def _described(header: Header) -> Mapping[str, Any]:
    """Return a patch's description; nothing where it is damaged, which is told later."""
    try:
        told = json.loads(header.metadata[KEY])
        _sums(told)
        told["parameters"].get(FILE)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
    return dict(told)

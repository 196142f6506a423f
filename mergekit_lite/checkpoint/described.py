"""Descriptions in the metadata of a safetensors file: JSON with a version and its sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mergekit_lite.errors import DataError


def metadata_of(key: str, told: Mapping[str, Any]) -> dict[str, str]:
    """Return the strings that a file carries: the description, and the sha256 of its text."""
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
    return {key: text, f"{key}_sha256": hashlib.sha256(text.encode()).hexdigest()}


def description_in(
    metadata: Mapping[str, str], key: str, version: int, label: str, *, what: str, again: str
) -> dict[str, Any]:
    """Return the description that a file carries.

    Args:
        metadata: of the file.
        key: under which it stands.
        version: that this program reads.
        label: what errors call the file.
        what: the kind of file, in a word.
        again: what to do about a damaged one.

    Raises:
        DataError: it is damaged, or that of another version.
    """
    text = metadata[key]
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get(f"{key}_sha256"):
        raise DataError(f"the description of the {what} has been changed", label, again)
    try:
        told = json.loads(text)
        found = told["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the {what} is not described as it should be: {error}", label) from error
    if found != version:
        raise DataError(
            f"the {what} is of version {found}, this program reads version {version}",
            label,
            "install the mergekit-lite that made it, or make it anew with this one",
        )
    return dict(told)

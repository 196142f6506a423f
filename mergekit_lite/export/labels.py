"""What an input may be called in a file that travels: a Hub id or a short name, never a path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.types import Input, Plan

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CACHE_FOLDER = re.compile(r"models--(.+?)--(.+)")

_FOLDERS = re.compile(r"^[^`]*[/\\](?=[^/\\:`]+:\d+:\d+: )")


def hub_id(source: Input, config: Mapping[str, Any] | None = None) -> str | None:
    """Return the Hub repository that an input is known by, or None.

    In this order: the reference of an input with a revision, the name of a download cache's
    folder, the name that the config says it was loaded from. A local path is never taken for one.
    """
    plain = source.reference.partition("@")[0]
    if source.revision and HUB_ID.fullmatch(plain):
        return plain
    for part in Path(source.root).parts:
        if cached := CACHE_FOLDER.fullmatch(part):
            return f"{cached[1]}/{cached[2]}"
    named = (config or {}).get("_name_or_path")
    return named if isinstance(named, str) and HUB_ID.fullmatch(named) else None


def short_name(source: Input) -> str:
    """Return what to call an input in a table: its Hub id, its reference, or its folder's name."""
    return hub_id(source) or str(without_paths(source.reference)).removeprefix("./")


def stored_dtypes(plan: Plan) -> list[str]:
    """Return the dtypes and schemes of the output's tensors, that of most bytes first."""
    nbytes: dict[str, int] = {}
    for job in plan.jobs:
        dtype = job.dtype if job.coding is None else job.coding.scheme
        nbytes[dtype] = nbytes.get(dtype, 0) + job_bytes(job)
    return sorted(nbytes, key=lambda dtype: (-nbytes[dtype], dtype))


def without_folders(message: str) -> str:
    """Return a message with the place it begins with, `a/recipe.yaml:3:9`, as `recipe.yaml:3:9`."""
    return _FOLDERS.sub("", message)


def without_paths(value: Any) -> Any:
    """Return plain data in which every path of one machine is cut down to its last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    windows = PureWindowsPath(value)
    if value.startswith(("/", "~", "../", "..\\")) or windows.is_absolute():
        name = windows.name if "\\" in value else PurePosixPath(value).name
        return name if name not in ("", "..") else "model"
    return value

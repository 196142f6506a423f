"""Statistic files: what was measured of each expert on data, one safetensors file an expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wanted:
    """The statistic that an op takes of a tensor.

    Attributes:
        shape: that it must have.
        optional: a tensor without it needs no mention.
    """

    shape: tuple[int, ...]
    optional: bool = False


def files_of(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Return the statistic file of each input; those that the parameter leaves out are missing.

    Args:
        params: of an op with a parameter `file`: a path, or a map of paths by expert.
        names: of the op's inputs.
    """
    file = params.get("file", "")
    if not isinstance(file, Mapping):
        return dict.fromkeys(names, str(file))
    default = file.get("default")
    paths = {name: file.get(name, default) for name in names}
    return {name: str(path) for name, path in paths.items() if path is not None}

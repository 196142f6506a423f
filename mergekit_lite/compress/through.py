"""A difference through a codec and back: what a patch of it would add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mergekit_lite.compress import codec_named, scheme_named
from mergekit_lite.compress._types import Delta, Floats, in_memory
from mergekit_lite.errors import RecipeError


def problems(codec: str, params: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the parameters of a codec, in words."""
    try:
        codec_named(codec).resolved(params)
    except RecipeError as error:
        return [f"{problem.what}; {problem.hint}".rstrip("; ") for problem in error.problems]
    return []


def through(
    values: Floats, shape: tuple[int, ...], name: str, codec: str, params: Mapping[str, Any]
) -> Floats:
    """Return a tensor's difference as a patch would give it back.

    Args:
        values: the difference, flat; left as it is.
        shape: of the tensor.
        name: of the tensor.
        codec: its name; one that looks at each tensor by itself.
        params: of the codec; the others have their defaults.
    """
    if not values.any():
        return values
    chosen = codec_named(codec)
    encoded = chosen.encode(Delta(name, shape, values), **chosen.resolved(params))
    if encoded is None:
        return values
    packed, fetch = in_memory(encoded, name, shape)
    out = np.zeros(values.size, np.float32)
    scheme_named(encoded.scheme).decoder(packed, fetch).fill(0, out)
    return out

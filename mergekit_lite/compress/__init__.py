"""Codecs of task vectors: one function a file, and the schemes in which they store tensors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from mergekit_lite.compress._spec import CODECS, SCHEMES, Codec
from mergekit_lite.compress._types import Decoder, Delta, Encoded, Scheme
from mergekit_lite.errors import DataError, RecipeError, nearest
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.registered import entry_points

__all__ = [
    "Codec",
    "Decoder",
    "Delta",
    "Encoded",
    "Scheme",
    "codec_named",
    "decoding_kernels",
    "registry",
    "scheme_named",
]

GROUP = "mergekit_lite.codecs"
"""Entry point group under which other packages register codecs and schemes."""


@cache
def _discover() -> None:
    for room in ("schemes", "codecs"):
        package = importlib.import_module(f"{__name__}.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise RecipeError(
                f"the codec `{entry.name}` ({entry.value}) cannot be loaded: {error}",
                hint="update or remove the package that registers it",
            ) from error


def registry() -> Mapping[str, Codec]:
    """Return every codec by name: the built-in ones and those of installed entry points.

    Raises:
        RecipeError: the codec of another package cannot be loaded.
    """
    _discover()
    return CODECS


def decoding_kernels() -> list[Kernel]:
    """Return the kernels that decoding calls, of all schemes."""
    _discover()
    return list(dict.fromkeys(kernel for one in SCHEMES.values() for kernel in one.kernels))


def codec_named(name: str) -> Codec:
    """Return a codec.

    Raises:
        RecipeError: there is none of this name.
    """
    found = registry()
    if name not in found:
        hint = nearest(name, found) or f"there are {', '.join(found)}"
        raise RecipeError(f"there is no codec `{name}`", hint=hint)
    return found[name]


def scheme_named(name: str) -> Scheme:
    """Return the scheme in which a tensor is stored.

    Raises:
        DataError: there is none of this name.
    """
    _discover()
    if name not in SCHEMES:
        from mergekit_lite.compress.schemes.product import product_scheme
        from mergekit_lite.compress.schemes.summed import sum_scheme

        if (both := product_scheme(name) or sum_scheme(name)) is not None:
            return both
        raise DataError(
            f"the patch stores tensors as `{name}`, which this program does not know",
            hint="install the package that made it, or a later version of this one",
        )
    return SCHEMES[name]

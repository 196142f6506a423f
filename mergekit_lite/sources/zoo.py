"""The source `zoo:NAME`: the embedded base and its experts."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import mergekit_lite
from mergekit_lite.errors import RecipeError, SourceError, nearest
from mergekit_lite.folders import cache_folder
from mergekit_lite.sources._types import Model
from mergekit_lite.sources.local import LocalSource

SCHEME = "zoo:"
BASE = "smol"
FULL = "-full"


class ZooSource:
    """The models that come with this package: `zoo:smol` and its experts."""

    name = "zoo"

    def accepts(self, reference: str) -> bool:
        return reference.startswith(SCHEME)

    def resolve(self, reference: str, relative_to: Path) -> Model:
        """Return the model; makes the base in the cache the first time, said on stderr.

        Raises:
            RecipeError: the zoo has nothing of that name.
            SourceError: the packages that carry the base are missing, or a full fine-tune has not
                been made yet.
        """
        found = LocalSource().resolve(str(zoo_folder(reference)), relative_to)
        return replace(found, reference=reference)


def adapters() -> dict[str, Path]:
    """Return the folder of every adapter that ships with this package, by name of the expert."""
    home = Path(mergekit_lite.__file__).parent / "zoo" / "adapters"
    return {file.parent.name: file.parent for file in sorted(home.glob("*/adapter_config.json"))}


def zoo_names() -> list[str]:
    """Return every name that may follow `zoo:`."""
    experts = [f"{BASE}-{name}" for name in adapters()]
    return [BASE, *experts, *(f"{name}{FULL}" for name in experts)]


def zoo_folder(reference: str) -> Path:
    """Return the local folder of a zoo reference; makes the base if it is not there yet.

    Args:
        reference: `zoo:smol`, an adapter (`zoo:smol-NAME`) or a full fine-tune
            (`zoo:smol-NAME-full`, made by `mergekit-lite zoo build --full`).

    Raises:
        RecipeError: the zoo has nothing of that name; tells the nearest.
        SourceError: the packages that carry the base are missing, or a full fine-tune has not
            been made yet.
    """
    name = reference.removeprefix(SCHEME)
    if name not in zoo_names():
        known = f"the zoo has {', '.join(SCHEME + known for known in zoo_names())}"
        hint = nearest(name, zoo_names())
        raise RecipeError(f"the zoo has no `{name}`", hint=f"{hint} {known}".strip())
    if name == BASE:
        # The zoo is a room above this one and reads GGUF, which sources do not; it is loaded the
        # way a source of a third party would be, by name and only when it is needed.
        builder = importlib.import_module("mergekit_lite.zoo.smollm2")
        folder: Path = builder.ensure(cache_folder("zoo") / BASE)
        return folder
    if not name.endswith(FULL):
        return adapters()[name.removeprefix(f"{BASE}-")]
    folder = cache_folder("zoo") / name
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"`{reference}` has not been made on this machine yet",
            hint="make it with `mergekit-lite zoo build --full`, a few minutes for each expert; or "
            f"use the adapter `{reference.removesuffix(FULL)}`, which ships with this package",
        )
    return folder

"""What the zoo holds: the experts, the data each was trained on and the settings that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit_lite.errors import RecipeError, nearest

BASE = "smol"
HOME = Path(__file__).parent
ADAPTERS = HOME / "adapters"
TEXT = HOME / "text"


@dataclass(frozen=True)
class Training:
    """How an expert is trained.

    Attributes:
        steps: optimiser steps.
        batch: windows per step.
        window: tokens per window.
        rate: peak learning rate; warmed up over a tenth of the steps, then linearly to zero.
        seed: seed of the window order and of the adapter's first values.
    """

    steps: int
    batch: int
    window: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Expert:
    """One expert of the zoo.

    Attributes:
        name: short name; the reference is `zoo:smol-<name>`.
        about: what it knows.
        reader: name of the function of `corpus.py` that reads its text.
        language: language code of its text.
        package: Debian package that holds its text.
        licence: licence of the text.
        adapter: settings of the adapter that ships.
        full: settings of the full fine-tune that `zoo build --full` makes.
    """

    name: str
    about: str
    reader: str
    language: str
    package: str
    licence: str
    adapter: Training
    full: Training

    @property
    def reference(self) -> str:
        return f"zoo:{BASE}-{self.name}"

    @property
    def folder(self) -> Path:
        """Folder of the adapter that ships with the package."""
        return ADAPTERS / self.name


def _expert(name: str, about: str, reader: str, language: str, seed: int) -> Expert:
    package, licence = {
        "messages": ("postgresql-15", "PostgreSQL"),
        "glosses": ("wordnet-base", "WordNet-3.0"),
    }[reader]
    adapter = Training(steps=80, batch=2, window=128, rate=1e-3, seed=seed)
    full = Training(steps=30, batch=2, window=128, rate=1e-4, seed=seed)
    return Expert(name, about, reader, language, package, licence, adapter, full)


EXPERTS: Mapping[str, Expert] = {
    expert.name: expert
    for expert in (
        _expert("german", "database messages in German", "messages", "de", 11),
        _expert("french", "database messages in French", "messages", "fr", 12),
        _expert("dictionary", "English dictionary entries", "glosses", "en", 13),
    )
}
"""Every expert of the base, by short name."""


def expert_named(name: str) -> Expert:
    """Return the expert called `name`, with or without `zoo:smol-` in front.

    Raises:
        RecipeError: there is no such expert; names the nearest one.
    """
    short = name.removeprefix("zoo:").removeprefix(f"{BASE}-")
    if short in EXPERTS:
        return EXPERTS[short]
    known = ", ".join(EXPERTS)
    raise RecipeError(
        f"the zoo has no expert `{name}`",
        "zoo",
        " ".join(filter(None, [nearest(short, EXPERTS), f"the experts are {known}"])),
    )


def held_out_text(domain: str, split: str = "test") -> Path:
    """Return the file of a domain's held-out text; `split` is `test` or `validation`."""
    return TEXT / (f"{domain}.txt" if split == "test" else f"{domain}.{split}.txt")

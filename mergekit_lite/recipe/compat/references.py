"""How a mergekit recipe names models, and the names they get here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.recipe.compat.notes import Notes
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of

_FORMS = "write `org/name`, `org/name@revision`, a folder, or any of these with `+adapter`"
_RESERVED = ("base", "default")


@dataclass(frozen=True)
class Reference:
    """One model as a mergekit recipe names it.

    Attributes:
        model: folder, file or repository, spelt from the recipe's folder.
        lora: adapter merged into it, "" without one.
        mark: where it is named.
        identity: equal for two spellings of one model.
    """

    model: str
    lora: str
    mark: Mark
    identity: tuple[str, str]

    @property
    def label(self) -> str:
        return f"{self.model}+{self.lora}" if self.lora else self.model

    @property
    def is_stage(self) -> bool:
        """Whether it is another recipe's result."""
        return self.model.startswith("@")

    def same(self, other: Reference | None) -> bool:
        """Return whether both name one model, with one adapter."""
        return other is not None and self.identity == other.identity


@dataclass(frozen=True)
class References:
    """Reads the references of one recipe.

    Attributes:
        folder: the recipe's folder, from which its references are spelt.
        problems: where to note what is wrong.
        notes: where to note what was left out.
        stages: names of the other documents of the file, which may be used as models.
    """

    folder: Path
    problems: Problems
    notes: Notes
    stages: frozenset[str] = frozenset()

    def read(self, node: Node) -> Reference | None:
        """Return the model that a node names; None where it names none, which is noted."""
        model, lora = self._parts(node)
        if not model:
            return None
        return Reference(
            self._spelt(model), self._spelt(lora), node.mark, (self._key(model), self._key(lora))
        )

    def _parts(self, node: Node) -> tuple[str, str]:
        value: Any = node.value
        if isinstance(value, dict):
            return self._long_form(node)
        if not isinstance(value, str) or not value.strip():
            what = f"a model is a name or a path, not {kind_of(value) if value else 'nothing'}"
            self.problems.add(what, node.mark, _FORMS)
            return "", ""
        parts = value.strip().split("+")
        if len(parts) > 2 or not all(parts):
            self.problems.add(f"`{value}` is no model", node.mark, _FORMS)
            return "", ""
        if any(part.count("@") > 1 for part in parts):
            self.problems.add(f"`{value}` has two `@` in one name", node.mark, _FORMS)
            return "", ""
        return parts[0], parts[1] if len(parts) > 1 else ""

    def _long_form(self, node: Node) -> tuple[str, str]:
        """Read `{model: {path, revision}, lora: ...}`, as mergekit itself writes it."""
        texts = []
        for key in ("model", "lora"):
            part = node.get(key)
            path = part.get("path") if part is not None else None
            text = str((path if path is not None else part or node).value or "")
            revision = part.get("revision") if part is not None else None
            if part is None or part.value is None:
                text = ""
            elif revision is not None and revision.value:
                text += f"@{revision.value}"
            texts.append(text)
        if (other := node.get("override_architecture")) is not None and other.value is not None:
            what = "`override_architecture` is left out: the tensors' names decide, for any model"
            self.notes.add(what, other.key)
        unknown = set(node.entries()) - {"model", "lora", "override_architecture"}
        for key in sorted(unknown):
            self.problems.add(f"unknown key `{key}` in a model", node.entries()[key].key, _FORMS)
        if not texts[0]:
            self.problems.add("this names no model", node.mark, _FORMS)
        return texts[0], texts[1]

    def _spelt(self, text: str) -> str:
        """Return a path as it is spelt from the recipe's folder; other names unchanged.

        mergekit looks from the working folder, so what is there wins.
        """
        if text in self.stages:
            return f"@{text}"
        expanded = Path(os.path.expanduser(text))
        here = Path.cwd()
        if not text or expanded.is_absolute() or here == self.folder.absolute():
            return text
        if not (here / expanded).exists():
            return text
        moved = os.path.relpath(here / expanded, self.folder)
        return moved if moved.startswith("..") else f"./{moved}"

    def _key(self, text: str) -> str:
        if not text or text in self.stages:
            return text
        path = self.folder / os.path.expanduser(self._spelt(text))
        return os.path.realpath(path) if path.exists() else text.removesuffix("@main")


def name_for(reference: Reference, taken: Iterable[str]) -> str:
    """Return a name for an expert after its model's last part, unlike any that is taken."""
    text = (reference.lora or reference.model).partition("@")
    last = (text[0] or text[2]).rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    last = last.removesuffix(".safetensors")
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", last).strip(".+-") or "expert"
    used = {*taken, *_RESERVED}
    if name not in used:
        return name
    return next(f"{name}-{i}" for i in range(2, len(used) + 3) if f"{name}-{i}" not in used)

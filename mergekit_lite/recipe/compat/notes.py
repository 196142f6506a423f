"""What reading another tool's recipe left out or understood in its own way."""

from __future__ import annotations

from dataclasses import dataclass, field

from mergekit_lite.recipe.marks import Mark


@dataclass(frozen=True)
class Note:
    """One remark about a translated recipe.

    Attributes:
        what: the remark, a sentence without its full stop.
        mark: the place in the user's file.
        warns: it may surprise, so every verb says it; the rest only `import` does.
    """

    what: str
    mark: Mark
    warns: bool = False

    def __str__(self) -> str:
        return f"{self.mark}: {self.what}"


@dataclass
class Notes:
    """The remarks about one recipe, none of them twice."""

    found: list[Note] = field(default_factory=list)

    def add(self, what: str, mark: Mark, *, warns: bool = False) -> None:
        """Remember one remark."""
        note = Note(what, mark, warns)
        if note not in self.found:
            self.found.append(note)

    def ordered(self) -> tuple[Note, ...]:
        """Return all remarks in reading order."""
        return tuple(sorted(self.found, key=lambda note: note.mark))

"""What can go wrong, as one tree.

MergekitLiteError            1  the run failed
├── RecipeError              2  the recipe, the command or the shape of the inputs is wrong
├── DataError                3  the bytes are wrong: corrupt, non-finite, below a quality bound
├── ResourceError            4  not enough disk, memory or network
├── SourceError              5  a source is missing, gated or unreachable
└── Interrupted            130  stopped by a signal; the run can be taken up again
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where and what to do about it."""

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n    {self.hint}" if self.hint else head


class MergekitLiteError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        problems: what is wrong; a plain string stands for one problem.
        where: place of that one problem (`recipe.yaml:14:9`, a tensor, a file).
        hint: what to do about that one problem.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, problems: str | Problem | Sequence[Problem], where: str = "", hint: str = ""
    ) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, where, hint)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(MergekitLiteError):
    """The recipe, the command line or the shape of the inputs is wrong; nothing was written."""

    exit_code = 2


class DataError(MergekitLiteError):
    """Bytes of an input or an output are wrong: corrupt, non-finite or below a bound."""

    exit_code = 3


class ResourceError(MergekitLiteError):
    """Disk, memory or network do not suffice."""

    exit_code = 4


class SourceError(MergekitLiteError):
    """A model is missing, gated or unreachable."""

    exit_code = 5


class Interrupted(MergekitLiteError):
    """The run was stopped by a signal; running the same command again takes it up."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean `x`?" for the known word nearest to `word`, or an empty string."""
    folded = {name.lower().replace("-", "_"): name for name in known}
    match = difflib.get_close_matches(word.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    return f"did you mean `{folded[match[0]]}`?" if match else ""

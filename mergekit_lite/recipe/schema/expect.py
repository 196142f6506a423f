"""What a recipe may say about how good its result must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.recipe.schema.fields import Part, whole

ScoreName = Literal[
    "bits_per_byte",
    "perplexity",
    "accuracy",
    "correlation",
    "mean",
    "recovery",
    "flips",
    "kl",
    "agreement",
    "similarity",
]
DataKind = Literal["texts", "questions", "labels", "pairs", "tasks"]
BASELINE = "baseline"
"""What the earlier model is called that `expect.baseline` speaks of."""


@dataclass(frozen=True)
class ScoreKind:
    """A number that can be said of a model on some data.

    Attributes:
        of: what data has it.
        rises: whether more is better.
        against: what it is compared with: nothing, a `parent` whose tokens it predicts as well, or
            a `model` with scores of its own.
    """

    of: tuple[DataKind, ...]
    rises: bool
    against: Literal["", "parent", "model"] = ""


ANY: tuple[DataKind, ...] = ("texts", "questions", "labels", "pairs", "tasks")
SCORES: Mapping[str, ScoreKind] = {
    "bits_per_byte": ScoreKind(("texts",), False),
    "perplexity": ScoreKind(("texts",), False),
    "accuracy": ScoreKind(("questions", "labels"), True),
    "correlation": ScoreKind(("pairs",), True),
    "mean": ScoreKind(("tasks",), True),
    "recovery": ScoreKind(ANY, True, "model"),
    "flips": ScoreKind(("questions", "labels", "tasks"), False, "model"),
    "kl": ScoreKind(("texts", "labels"), False, "parent"),
    "agreement": ScoreKind(("texts", "labels"), True, "parent"),
    "similarity": ScoreKind(("texts", "labels", "pairs"), True, "parent"),
}
"""All of them, by name."""


class Bound(Part):
    """One score and how bad it may be."""

    data: str
    """Name of the data that it is of."""
    score: ScoreName
    """Which number: of texts `bits_per_byte`, `perplexity`; of questions and labels `accuracy`,
    `flips`; of pairs `correlation`; of tasks `mean`, `flips`; of texts and labels `kl`,
    `agreement`; of texts, labels and pairs `similarity`; of all `recovery`."""
    against: str | None = None
    """Of `recovery`, `flips`, `kl`, `agreement` and `similarity`: the other model, `base`, an
    expert's name or `baseline`."""
    at_least: float | None = None
    """The least value, of all scores of which more is better."""
    at_most: float | None = None
    """The largest value, of `bits_per_byte`, `perplexity`, `flips` and `kl`."""
    confidence: Annotated[float | None, Field(ge=0, lt=1)] = None
    """A bound falls where the whole bootstrap interval of this confidence is beyond it; 0 takes
    the value alone. By default 0.95 for `recovery` and `flips`, and 0 for the others."""
    where: SkipJsonSchema[str] = Field("", exclude=True)


class Expect(Part):
    """How good the result must be: a run whose result is not exits with code 3."""

    data: Mapping[str, str]
    """Held-out texts (`.txt`, `.jsonl`, `zoo:NAME`), questions, labels and pairs (`.jsonl`), and
    tasks of lm-eval (`task:NAME`, `task:FILE.yaml`) by name, from the recipe's folder."""
    bounds: Annotated[tuple[Bound, ...], Field(min_length=1)]
    """What must hold, one score each."""
    baseline: str | None = None
    """Results of an earlier model, which `eval --update-baseline` writes."""
    windows: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 16
    """Most windows of a text, and questions of a file, that are scored."""
    window_bytes: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 512
    """Bytes of a window of text; it ends with a line."""

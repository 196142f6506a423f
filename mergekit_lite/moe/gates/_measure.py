"""What a method may ask to be measured of the texts that the experts are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

Through = Literal["base", "expert"]
Labels = Literal["expert", "perplexity"]


@dataclass(frozen=True)
class Topic:
    """The texts that one expert is for, or is not for.

    Attributes:
        expert: index into the routed experts.
        name: of the expert, with a number where another topic has that name.
        prompts: short texts.
        file: of more texts.
    """

    expert: int
    name: str
    prompts: tuple[str, ...] = ()
    file: Path | None = None


@dataclass(frozen=True)
class LayerSums:
    """Sums over what a router of one layer is shown, for each of D topics, in fp64.

    Attributes:
        gram: (D, d, d) sums of x x^T over the inputs x.
        total: (D, d) sums of x.
        unit: (D, d) sums of x / |x|.
        count: (D,) inputs.
        sample: (t, d) some of the inputs, spread evenly over the texts; None where none are asked.
    """

    gram: Array
    total: Array
    unit: Array
    count: Array
    sample: Array | None = None


@dataclass(frozen=True)
class Sums:
    """What a pass finds.

    Attributes:
        layers: layer by layer, as the pass goes on.
        facts: what the manifest says of the pass.
    """

    layers: Iterator[tuple[int, LayerSums]]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """How texts are read.

    Attributes:
        length: most tokens of a sample.
        tokens: most tokens of a topic.
        through: feed-forward layers that texts pass on their way: those of the base, or each
            topic's those of its own expert.
        labels: whose a text is: the expert's that it was given for, or the one's that predicts it
            best.
        sample: how many inputs of a layer to keep.
    """

    length: int = 512
    tokens: int = 16384
    through: Through = "base"
    labels: Labels = "expert"
    sample: int = 0


class Measure(Protocol):
    """Runs texts through models; handed to methods by whoever asks for gates."""

    def sums(self, topics: Sequence[Topic], reading: Reading) -> Sums:
        """Run texts and take down what routers are shown of them."""

    def changes(self, topic: Topic, reading: Reading) -> Iterator[tuple[int, Array, Array]]:
        """Run a topic's texts through its own expert, and yield what that changes layer by layer.

        The layer, what it is shown (tokens, d), and for each token the squared norm of what the
        expert says less what the base would say.
        """

    def facts(self, topics: Sequence[Topic], reading: Reading) -> Mapping[str, Any]:
        """Return what the manifest says of texts that are run in this way."""

    def last_states(self, topics: Sequence[Topic], *, average: bool = False) -> list[Tensor]:
        """Return what enters the base's decoder layers at the last token of each topic's prompts.

        (layers, prompts, d) each, in bf16: as mergekit computes them, all prompts of a topic side
        by side.

        Args:
            topics: whose prompts to run.
            average: the mean over all tokens in place of the last.
        """

    def embeddings(self, topics: Sequence[Topic]) -> Array:
        """Return the sum of the base's embeddings over each topic's prompts, (D, d)."""

    def text_embeddings(self, topics: Sequence[Topic], reading: Reading) -> Array:
        """Return the mean of each topic's texts as the base sees them, (D, d), in fp64.

        A text is the mean over its tokens of the base's last hidden state, at norm 1.
        """

    def change(self, expert: int, layer: int) -> Array:
        """Return what an expert's gate and up projections add to the base's, (2 width, d)."""


def name_of(expert: Mapping[str, Any]) -> str:
    """Return what an expert of a plan is called: as its model, or as the child of others."""
    if expert.get("child") is not None:
        return f"child-{int(expert['child']) + 1}"
    return str(expert["expert"])


def topics_of(experts: Sequence[Any], texts: Path) -> list[Topic]:
    """Return the texts that each expert of a plan is for."""
    names = [name_of(expert) for expert in experts]
    return [
        Topic(
            index,
            name if names.count(name) == 1 else f"{name} {1 + names[:index].count(name)}",
            tuple(expert.get("prompts", ())),
            texts / expert["data"] if expert.get("data") else None,
        )
        for index, (name, expert) in enumerate(zip(names, experts, strict=True))
    ]

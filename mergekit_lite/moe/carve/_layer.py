"""What ways of splitting and choosing look at: a feed-forward layer, and texts before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Neurons = NDArray[np.int64]
    Importance = Callable[[Neurons, int], NDArray[np.float64]]

CHUNK = 1024
"""Tokens that are looked at together."""
MULTIPLE = 8
"""Slices are as many neurons wide, or a multiple: rows of 16 bytes are what loaders multiply."""


def width_of(neurons: int, slices: int) -> int:
    """Return how wide slices are; what is wider than their neurons is filled with zeros."""
    return -(-neurons // (slices * MULTIPLE)) * MULTIPLE


@dataclass(frozen=True)
class Shares:
    """How many neurons go where.

    Attributes:
        shared: to the shared expert.
        routed: to each of the others.
    """

    shared: int
    routed: tuple[int, ...]

    @classmethod
    def of(cls, neurons: int, slices: int, shared: int) -> Shares:
        """Return shares that differ by one neuron at most, the larger ones first."""
        each = [neurons // slices + (i < neurons % slices) for i in range(slices)]
        return cls(sum(each[:shared]), tuple(each[shared:]))


@dataclass(frozen=True)
class Split:
    """Which neurons went where, by their number in the dense layer.

    Attributes:
        shared: those of the shared expert.
        routed: those of each routed one.
    """

    shared: Neurons
    routed: tuple[Neurons, ...]


@dataclass(frozen=True)
class Layer:
    """A feed-forward layer: down(silu(gate(x)) * up(x)).

    Attributes:
        gate, up: (neurons, d) in fp32.
        down: (d, neurons) in fp32.
        inputs: (tokens, d) what texts put in front of it; None where no texts were run.
        key: that random numbers are drawn with.
        slopes: see `Seen`.
    """

    gate: Floats
    up: Floats
    down: Floats
    inputs: Floats | None
    key: int
    slopes: Importance | None = None

    @property
    def neurons(self) -> int:
        return int(self.gate.shape[0])

    def seen(self) -> Floats:
        """Return the inputs, which there must be."""
        if self.inputs is None:
            raise ValueError("no texts were run")
        return self.inputs

    def importance(self, labels: Neurons, groups: int) -> NDArray[np.float64]:
        """Return how much each neuron matters to each group of tokens, (groups, neurons).

        Args:
            labels: the group of each token.
            groups: how many there are.
        """
        if self.slopes is None:
            raise ValueError("the loss of no text was followed back")
        return self.slopes(labels, groups)


def silu(x: Floats) -> Floats:
    """Return x * sigmoid(x)."""
    import numpy as np

    with np.errstate(over="ignore"):
        found: Floats = x / (1 + np.exp(-x))
    return found


def normalised(rows: Floats) -> Floats:
    """Return rows at norm 1; rows of zeros stay as they are."""
    import numpy as np

    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def chunks(rows: Floats) -> Iterator[Floats]:
    """Yield tokens some at a time."""
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK]


@dataclass(frozen=True)
class Seen:
    """What a pass of texts gives for one layer.

    Attributes:
        inputs: what is put in front of its feed-forward layer, (tokens, d); None where no texts are
            run.
        slopes: of the group of each token, and the number of groups, returns the sum over each
            group's tokens of |h dL/dh| for every neuron, (groups, neurons): h is what the down
            projection is shown, L the loss. Can be asked while the layer is at hand.
    """

    inputs: Floats | None = None
    slopes: Importance | None = None


@dataclass(frozen=True)
class Passed:
    """What a pass of texts gives.

    Attributes:
        layers: what it gives for each layer, with the layer's number.
        facts: what the manifest says of the pass.
    """

    layers: Iterator[tuple[int, Seen]]
    facts: Mapping[str, Any]


class Material(Protocol):
    """Reads the base's matrices and runs texts through it; handed over by whoever carves."""

    def matrix(self, layer: int, part: str) -> Floats:
        """Return `gate`, `up` or `down` of a layer in fp32."""

    def passed(self, file: Path, *, tokens: int, length: int, back: bool = False) -> Passed:
        """Run texts through the base; where asked, follow their loss back as well."""

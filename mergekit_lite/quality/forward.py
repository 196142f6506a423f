"""Runs data through a model, one layer in memory at a time, and says what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.ends import ends
from mergekit_lite.calibrate.estimate import estimate
from mergekit_lite.calibrate.skeleton import Skeleton, build, require_transformers
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import batches, load_tokenizer
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import ResourceError
from mergekit_lite.quality.data import Data
from mergekit_lite.quality.sequences import Piece, Taker, as_samples, pieces
from mergekit_lite.quality.subjects import Subject

if TYPE_CHECKING:
    from torch import Tensor

Tell = Callable[[str], object]
LOGITS = 4
"""Copies of one piece's logits that are in memory at a time."""


@dataclass(frozen=True)
class Settings:
    """How data is run.

    Attributes:
        batch: most tokens side by side, padding counted.
        device: of torch.
        dtype: `float32` or `bfloat16`.
        max_memory: most bytes that it may take; None leaves it to the machine.
    """

    batch: int = 2048
    device: str = "cpu"
    dtype: str = "float32"
    max_memory: int | None = None


@dataclass(frozen=True)
class Predicted:
    """What a model says of one piece.

    Attributes:
        piece: what was run.
        targets: (predicted tokens,) ids that there are.
        logits: (predicted tokens, vocabulary) or (1, labels), fp32.
        vector: (width,) mean over all tokens of what enters the head, fp64.
    """

    piece: Piece
    targets: Tensor
    logits: Tensor
    vector: Tensor


@dataclass(frozen=True)
class Loaded:
    """A model that stays in memory while several passes go through it.

    Attributes:
        skeleton: the model.
        tokenizer: of transformers.
        stream: runs it.
    """

    skeleton: Skeleton
    tokenizer: Any
    stream: Stream


class Pass:
    """One model and all data, before, while and after the one goes through the other.

    Args:
        subject: the model.
        data: what to run.
        settings: how.
        loaded: the model, where it is in memory already; by default it is read layer by layer.

    Raises:
        SourceError: transformers is not installed.
        DataError: config, tokenizer and model do not fit each other.
        RecipeError: transformers does not build the architecture.
    """

    def __init__(
        self,
        subject: Subject,
        data: Sequence[Data],
        settings: Settings,
        loaded: Loaded | None = None,
    ) -> None:
        require_transformers("eval")
        self.subject, self.settings, self._loaded = subject, settings, loaded
        folder = subject.model.root
        if loaded is None:
            self.skeleton = build(folder, device=settings.device, dtype=settings.dtype)
        else:
            self.skeleton = loaded.skeleton
        tokenizer = load_tokenizer(folder) if loaded is None else loaded.tokenizer
        self.pieces = pieces(data, tokenizer, taker(subject.name, self.skeleton))
        samples = as_samples(self.pieces)
        self._batches = batches(samples, size=settings.batch)
        longest = max(len(piece.ids) for piece in self.pieces)
        found = estimate(self.skeleton, samples, self._batches, ())
        self.memory = found.memory + LOGITS * 4 * longest * self.skeleton.vocabulary
        self._weights: Weights | None = None
        self._stream: Stream | None = None
        self._hidden: list[Tensor] = []

    def run(self, tell: Tell) -> None:
        """Run all data through all layers; embedding and head are in memory afterwards.

        Raises:
            DataError: weights are missing or do not fit the config.
        """
        if self._loaded is None:
            self._weights = Weights(self.skeleton, {"model": self.subject.model})
            self._stream = Stream(self.skeleton, self._weights)
        else:
            self._stream = self._loaded.stream
        self._hidden = self._stream.embed(self._batches)
        for place in self._stream.layers(self._batches, self._hidden):
            tell(f"{self.subject.name}: layer {place.index + 1} of {len(self.skeleton.layers)}")
        self._stream.weights.load(None)

    def predicted(self) -> Iterator[Predicted]:
        """Yield what the model says of each piece, in an order that pieces alone decide."""
        if self._stream is None:
            raise RuntimeError("nothing has been run")
        for found in ends(self._stream, self._batches, self._hidden):
            piece = self.pieces[found.row]
            given = piece.start - 1
            yield Predicted(piece, found.targets[given:], found.logits[given:], found.vector)

    def close(self) -> None:
        """Close the weight files and let the weights go."""
        if self._weights is not None:
            self._weights.close()
        self._stream, self._hidden = None, []


def taker(name: str, skeleton: Skeleton) -> Taker:
    """Return what a model can be given, and what it gives.

    Args:
        name: of the model, for messages.
        skeleton: the model.
    """
    config: Any = skeleton.model.config.get_text_config()
    positions = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    for module_name, module in skeleton.model.named_modules():
        # RoBERTa and its like count positions from after the one of padding.
        padding = getattr(module, "padding_idx", None)
        if module_name.endswith("position_embeddings") and padding is not None:
            positions -= padding + 1
    labels: dict[int, str] = skeleton.model.config.id2label if skeleton.head == "labels" else {}
    names = tuple(str(labels[number]) for number in sorted(labels))
    return Taker(name, skeleton.vocabulary, positions, skeleton.head, names)


def require_memory(passes: Sequence[Pass], limit: int | None) -> int:
    """Return the bytes that the model, and one parent beside it, will take.

    Args:
        passes: of the model and its parents.
        limit: most bytes that are allowed.

    Raises:
        ResourceError: it is more than allowed; tells how to go on.
    """
    first, *others = (each.memory for each in passes)
    need = first + max(others, default=0)
    if limit is not None and need > limit:
        raise ResourceError(
            f"scoring needs about {need:,} bytes of memory, one layer in it at a time, and"
            f" {limit:,} are allowed",
            "--max-memory",
            "give fewer --windows, `--dtype bfloat16`, or no --parent, or allow more memory",
        )
    return need

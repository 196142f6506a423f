"""What an adapter says about the tensors of its base: values that planner and engine share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint._types import Header

if TYPE_CHECKING:
    from mergekit_lite.checkpoint.patch import Patch


@dataclass(frozen=True, slots=True)
class Share:
    """The factors of one expert's matrix, where the base has that as a part of a fused tensor.

    Attributes:
        expert: number of the expert.
        first, step: the outputs of the fused tensor that its outputs are: from `first` on, all or
            every second.
        a, b: names of the factors in the adapter's file.
        scale: what their product is multiplied by.
    """

    expert: int
    first: int
    step: int
    a: str
    b: str
    scale: float


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """A low-rank delta `scale * B @ A`, kept as its two factors, and what may come with it.

    Attributes:
        a: name of the (rank x in) factor in the adapter's file; empty where `b` says all: the
            delta of a bias is `scale * b`.
        b: name of the (out x rank) factor.
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        transpose: the weight is stored (in x out): GPT-2's Conv1D, and every embedding.
        magnitude: DoRA: name of the lengths that the rows of the (out x in) weight get.
        diagonal: KaSA: name of what stands between B and A; the base then lacks as many of its
            smallest singular values as the factors have ranks.
        under: name of the adapter's own copy of the base's weight, which the delta is added to.
        rows: trainable tokens: the rows of the weight that `b` replaces.
        stack: experts in one pair of factors (a fused tensor); 0 for a plain pair.
        expert: the one of them that is meant, -1 for all, in a tensor of three dimensions.
        first: row of B that the tensor's first row takes (gate and up share a factor).
        step: how far apart the rows of B are that it takes; 2 where gate and up take turns.
        shares: in place of `a` and `b`, the factors of single experts of a fused tensor.
        packed: of a patch: the name under which its description has this difference; there are
            then no factors but `parts`.
        parts: the stored tensors that a compressed difference is made of.
    """

    a: str
    b: str
    scale: float
    transpose: bool = False
    magnitude: str = ""
    diagonal: str = ""
    under: str = ""
    rows: tuple[int, ...] = ()
    stack: int = 0
    expert: int = -1
    first: int = 0
    step: int = 1
    shares: tuple[Share, ...] = ()
    packed: str = ""
    parts: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> LoraFactors:
        """Rebuild factors from JSON's plain data."""
        shares = tuple(Share(**share) for share in value["shares"])
        lists = {name: tuple(value[name]) for name in ("rows", "parts")}
        return cls(**{**value, **lists, "shares": shares})

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors of the adapter's file that it is made of."""
        if self.packed:
            return self.parts
        shared = (name for share in self.shares for name in (share.a, share.b))
        every = (self.a, self.b, self.magnitude, self.diagonal, self.under, *shared)
        return tuple(name for name in every if name)

    @property
    def is_delta(self) -> bool:
        """Whether it is a difference to the base; else it is a weight made from the base's."""
        return not (self.magnitude or self.diagonal or self.under or self.rows)

    @property
    def is_plain(self) -> bool:
        """Whether it is `scale * B @ A` of one matrix and nothing else."""
        return self.is_delta and bool(self.a) and not self.stack

    @property
    def kind(self) -> str:
        """What it is, in the words of a message."""
        if self.packed:
            return "a compressed difference"
        if self.stack:
            return "factors of fused experts"
        if self.rows:
            return "trained tokens"
        if self.magnitude or self.diagonal:
            return "DoRA" if self.magnitude else "KaSA"
        if not self.a:
            return "a trained bias"
        return "a copy of the base's tensor" if self.under else "LoRA factors"


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A pair of factors for a bare parameter (`target_parameters`); only shapes tell for which.

    Attributes:
        module: path of the module that owns the parameter.
        parameters: names of the parameters it may be of, with the rank and scale each would have.
        a, b: names of the factors in the adapter's file.
    """

    module: str
    parameters: tuple[tuple[str, int, float], ...]
    a: str
    b: str


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, or a patch, as far as headers tell.

    Attributes:
        header: the tensors of the adapter's file.
        factors: base tensor name -> the factors of its delta.
        replaced: base tensor name -> adapter tensor that stands in its place (modules_to_save).
        config: `adapter_config.json`.
        base_model: the model it was trained on, as that file names it; may be empty.
        unplaced: factors that find their tensors once the base is known; see `on_base`.
        shapes: base tensor name -> shape it must have, where the factors alone do not tell.
        patch: the description, where this is a patch; `header` is then of the patch's file.
    """

    header: Header
    factors: Mapping[str, LoraFactors]
    replaced: Mapping[str, str]
    config: Mapping[str, Any]
    base_model: str
    unplaced: tuple[Unplaced, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    patch: Patch | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the base tensor `name` must have for this adapter to fit."""
        if name in self.shapes:
            return self.shapes[name]
        tensors = self.header.tensors
        if name in self.replaced:
            return tensors[self.replaced[name]].shape
        factors = self.factors[name]
        b = tensors[factors.b].shape
        if not factors.a:
            return b
        wide = tensors[factors.a].shape[1:]  # of a convolution: in and the kernel
        return (wide[0], b[0]) if factors.transpose else (b[0], *wide)

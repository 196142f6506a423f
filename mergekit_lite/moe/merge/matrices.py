"""How a routed module stores the matrices of its experts, and where neurons are in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.routed.layers import Form, routed_layers

Axis = Literal["rows", "columns", ""]
Kind = Literal["alone", "halves", "turns"]
_PARTS = {
    "gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down",
    "w2": "down", "gate_up_proj": "gate_up", "input_linear": "gate_up", "output_linear": "down",
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """One matrix, or bias, that every expert has.

    Attributes:
        part: `gate`, `up`, `gate_up` or `down`; empty where its name says none of them.
        leaf: `weight` or `bias`.
        name: of its tensor; of one that each expert has alone, with `{e}` in place of the number.
        rows, columns: of one expert's, as it is stored; a bias is one row.
        axis: along which its neurons lie, empty where it has one entry for each of the stream.
        kind: one entry a neuron, or those of gate and up in halves, or by turns.
    """

    part: str
    leaf: str
    name: str
    rows: int
    columns: int
    axis: Axis
    kind: Kind = "alone"

    @property
    def neurons(self) -> int:
        """How many neurons lie along its axis; 0 where none do."""
        along = {"rows": self.rows, "columns": self.columns, "": 0}[self.axis]
        return along if self.kind == "alone" else along // 2


@dataclass(frozen=True)
class Matrices:
    """All that each expert of a module has.

    Attributes:
        stacked: one tensor holds those of all experts.
        experts: how many there are.
        held: what each has.
        known: which order stacked halves have is known.
    """

    stacked: bool
    experts: int
    held: tuple[Held, ...]
    known: bool = True

    @property
    def neurons(self) -> int:
        """Neurons of an expert; 0 where they are not the same everywhere."""
        found = {held.neurons for held in self.held if held.axis}
        return found.pop() if len(found) == 1 else 0

    @property
    def hidden(self) -> int:
        """Entries of the stream."""
        of = next((h for h in self.held if h.leaf == "weight" and h.axis), None)
        return 0 if of is None else of.columns if of.axis == "rows" else of.rows

    def of(self, name: str) -> Held | None:
        """Return what a stacked tensor holds."""
        return next((held for held in self.held if held.name == name), None)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Matrices:
        """Rebuild it from `plain`."""
        return cls(**{**raw, "held": tuple(Held(**held) for held in raw["held"])})


def matrices_of(modules: Mapping[str, RoutedModule], base: View) -> dict[str, Matrices]:
    """Return how each module stores what its experts have."""
    forms = routed_layers(base.tensors, base.model.config)
    found = {}
    for root, own in modules.items():
        form = forms[root].form if root in forms else Form(alternating=None)
        if own.single:
            held = tuple(_alone(own, base.tensors))
            found[root] = Matrices(False, own.experts, held)
        else:
            held = tuple(_stacked(own.stacked, base.tensors, form))
            known = form.alternating is not None and root in forms
            found[root] = Matrices(True, own.experts, held, known)
    return found


def _alone(own: RoutedModule, tensors: Mapping[str, TensorInfo]) -> Iterator[Held]:
    start = f"{own.root}.experts."
    for name in own.single[0]:
        rest = name[len(f"{start}0") :]
        leaf = rest.rpartition(".")[2]
        part = next((_PARTS[word] for word in rest.split(".") if word in _PARTS), "")
        shape = tensors[name].shape
        bias = len(shape) < 2
        rows, columns = (1, shape[0] if shape else 1) if bias else (shape[0], shape[1])
        axis: Axis = "columns" if bias != (part == "down") else "rows"
        if not part or (bias and part == "down"):
            axis = ""
        yield Held(part, leaf, f"{start}{{e}}{rest}", rows, columns, axis)


def _stacked(names: Sequence[str], tensors: Mapping[str, TensorInfo], form: Form) -> Iterator[Held]:
    for name in names:
        word = name.removesuffix(".weight").rpartition(".")[2]
        bias = word.endswith("_bias") or name.endswith(".bias")
        part = _PARTS.get(word.removesuffix("_bias"), "")
        _, *shape = tensors[name].shape
        rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0] if shape else 1)
        into_stream = part == "down"
        axis: Axis = "columns" if into_stream != form.transposed else "rows"
        if bias or len(shape) != 2:
            axis = "" if into_stream or not part else "columns"
        kind: Kind = "alone" if part != "gate_up" else "turns" if form.alternating else "halves"
        yield Held(part, "bias" if bias else "weight", name, rows, columns, axis, kind)

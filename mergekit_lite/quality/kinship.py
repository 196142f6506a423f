"""Faults that a model shows beside the models that it was made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import layer_of
from mergekit_lite.errors import Problem
from mergekit_lite.quality.structure import Entries

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

MERGE, BASE = "merge", "base"
AKIN, STRANGE = 0.9, 0.5
"""Cosines: above the one, a tensor is the base's, a little changed; below the other it is not."""
LEAST_ENTRIES = 256
"""Of a tensor whose cosine says anything."""
ROWS = 64
"""Rows of an embedding that are looked for in the base's."""
LEAST_SHARE = 0.01
"""Part of an expert's delta below which the merge has nothing of it."""


@dataclass
class Sums:
    """Inner products over a tensor's entries, in fp64.

    Attributes:
        merge: of the merge with itself.
        base: of the base with itself.
        both: of the two.
        entries: that they run over.
        deltas: (experts + 1)^2 of differences to the base, the merge's last.
    """

    merge: float
    base: float
    both: float
    entries: int
    deltas: NDArray[np.float64]

    @property
    def cosine(self) -> float:
        """Between merge and base; 1 where either is all zeros."""
        size = math.sqrt(self.merge * self.base)
        return self.both / size if size > 0 else 1.0


@dataclass
class Kinship:
    """How a model's tensors are related to the base's and the experts'.

    Attributes:
        experts: their names.
        tensors: name -> sums, of all tensors that all of them have in one shape.
        strange: names of those that are not the base's at all.
        faults: what is wrong.
    """

    experts: tuple[str, ...]
    tensors: dict[str, Sums] = field(default_factory=dict)
    strange: set[str] = field(default_factory=set)
    faults: list[Problem] = field(default_factory=list)

    def shares(self) -> dict[str, float]:
        """Return what part of each expert's delta the merge has, by least squares over all.

        Experts that are the base are left out. Experts' deltas are not orthogonal, so a cosine
        alone would credit one with what came of another.
        """
        known = [sums.deltas for _, sums in self.related()]
        return dict(zip(self.experts, _solved(sum(known)), strict=True)) if known else {}

    def related(self) -> list[tuple[str, Sums]]:
        """Return the tensors whose difference to the base can be what experts gave."""
        return [
            (name, sums)
            for name, sums in self.tensors.items()
            if name not in self.strange
            and np.isfinite(sums.deltas).all()
            and (sums.merge > 0 or sums.base == 0)
        ]


def kinship(model: Model, base: Model, experts: Mapping[str, Model]) -> Kinship:
    """Compare a model with its base and experts, reading each once, and say what is wrong.

    Args:
        model: to look at.
        base: that it was made on.
        experts: that were to be merged.
    """
    models = {MERGE: model, BASE: base, **{f"expert {n}": m for n, m in experts.items()}}
    entries = Entries(models)
    found = Kinship(tuple(experts))
    try:
        for name in entries.floats(MERGE):
            if _in_all(name, models):
                found.tensors[name] = _summed(name, entries, list(models)[2:])
        found.faults += _strangers(found, entries)
        found.faults += _left_out(found) if experts else ()
    finally:
        entries.close()
    return found


def _in_all(name: str, models: Mapping[str, Model]) -> bool:
    infos = [model.header.tensors.get(name) for model in models.values()]
    return all(info is not None and info.shape == infos[0].shape for info in infos)  # type: ignore[union-attr]


def _summed(name: str, entries: Entries, experts: Sequence[str]) -> Sums:
    sums = Sums(0.0, 0.0, 0.0, 0, np.zeros((len(experts) + 1, len(experts) + 1)))
    for tiles in zip(*(entries.tiles(s, name) for s in (MERGE, BASE, *experts)), strict=True):
        merge, base, *others = (tile.astype(np.float64) for tile in tiles)
        sums.merge += float(merge @ merge)
        sums.base += float(base @ base)
        sums.both += float(merge @ base)
        sums.entries += len(merge)
        deltas = np.stack([*(other - base for other in others), merge - base])
        sums.deltas += deltas @ deltas.T
    return sums


def _solved(deltas: Any) -> list[float]:
    """Return the coefficients of the last vector in the others, from all inner products."""
    gram, right = deltas[:-1, :-1], deltas[:-1, -1]
    scale = np.sqrt(np.diag(gram))
    safe = np.where(scale > 0, scale, 1.0)
    found = np.linalg.lstsq(gram / np.outer(safe, safe), right / safe, rcond=1e-9)[0] / safe
    return [float(value) for value in np.where(scale > 0, found, np.nan)]


def _left_out(found: Kinship) -> Iterator[Problem]:
    """Yield experts of which no tensor of the merge has a part."""
    shares = found.shares()
    for number, name in enumerate(found.experts):
        share = shares.get(name, math.nan)
        if math.isnan(share) or abs(share) >= LEAST_SHARE:
            continue  # the expert is the base, or has a part
        if not any(_has_part(sums, number) for _, sums in found.related()):
            what = f"nothing of it is in the merge: {share:.4f} of its delta"
            yield Problem(what, f"expert {name}", "look at its weight and at the rules that take")


def _has_part(sums: Sums, number: int) -> bool:
    """Return whether a tensor has more of an expert's delta than it would have by chance."""
    expert, merge = float(sums.deltas[number, number]), float(sums.deltas[-1, -1])
    if expert == 0:
        return False
    chance = math.sqrt(merge / expert / sums.entries)
    return abs(_solved(sums.deltas)[number]) >= 5 * max(LEAST_SHARE, chance)


def _strangers(found: Kinship, entries: Entries) -> Iterator[Problem]:
    """Yield tensors that are not the base's, where most of the others are."""
    shapes = {name: entries.models[MERGE].header.tensors[name].shape for name in found.tensors}
    judged = {
        name: sums.cosine
        for name, sums in found.tensors.items()
        if len(shapes[name]) > 1
        and math.prod(shapes[name]) >= LEAST_ENTRIES
        and math.isfinite(sums.cosine)
    }
    if _layers(entries, MERGE) != _layers(entries, BASE):
        judged = {name: cosine for name, cosine in judged.items() if layer_of(name) is None}
    if not judged or float(np.median(list(judged.values()))) < AKIN:
        return
    for name, cosine in judged.items():
        if cosine >= STRANGE or found.tensors[name].merge == 0:
            continue
        found.strange.add(name)
        said = f"it is not the base's (cosine {cosine:.2f})"
        if layer_of(name) is None:
            said += _shift(name, entries)
        elif other := _double(name, [n for n in judged if shapes[n] == shapes[name]], entries):
            said += f": it is the base's `{other}`"
        hint = "names, or rows of the vocabulary, were mixed up before or in the merge"
        yield Problem(said, name, hint)


def _layers(entries: Entries, source: str) -> int:
    return len({layer_of(name) for name in entries.models[source].header.tensors})


def _double(name: str, others: Sequence[str], entries: Entries) -> str:
    """Return the base's tensor of the same layer that a tensor really is, or an empty string."""
    mine = entries.whole(MERGE, name).ravel().astype(np.float64)
    for other in others:
        if other != name and layer_of(other) == layer_of(name):
            theirs = entries.whole(BASE, other).ravel().astype(np.float64)
            size = math.sqrt(float(mine @ mine) * float(theirs @ theirs))
            if size > 0 and float(mine @ theirs) / size > AKIN:
                return other
    return ""


def _shift(name: str, entries: Entries) -> str:
    """Return by how many rows a vocabulary is shifted, in words; empty where it is otherwise."""
    mine, theirs = entries.whole(MERGE, name), entries.whole(BASE, name)
    if mine.ndim != 2:
        return ""
    rows = np.linspace(0, len(mine) - 1, min(ROWS, len(mine))).astype(np.intp)
    lengths = np.linalg.norm(theirs, axis=1)
    cosines = mine[rows] @ theirs.T / np.where(lengths > 0, lengths, 1)
    shifts, counts = np.unique((rows - cosines.argmax(1)), return_counts=True)
    best = counts.argmax()
    if shifts[best] == 0 or counts[best] < len(rows) // 2:
        return ""
    return f": its rows are the base's, moved by {int(shifts[best]):+d}"

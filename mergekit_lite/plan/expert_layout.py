"""Reads the experts of a routed model in the layout in which the base stores them.

Two layouts are known: one matrix for each expert and projection
(`experts.3.gate_proj.weight`, or `w1`, `w3` and `w2`), and two 3-D tensors for all of a layer
(`experts.gate_up_proj` of experts x (gate rows, then up rows) x width, and `experts.down_proj`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.types import Piece, Read

_EACH = re.compile(
    r"(?P<root>.+)\.experts\.(?P<expert>\d+)"
    r"\.(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$"
)
_FUSED = re.compile(r"(?P<root>.+)\.experts\.(?P<part>gate_up_proj|down_proj)$")
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

Made = tuple[TensorInfo, Read]


@dataclass
class Routed:
    """The routed layers of a model.

    Attributes:
        each: module -> (expert, projection) -> tensor.
        fused: module -> projection -> tensor.
    """

    each: dict[str, dict[tuple[int, str], str]] = field(default_factory=dict)
    fused: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Mapping[str, TensorInfo]) -> Routed:
        """Return the routed layers among tensors of these names."""
        found = cls()
        for name in names:
            if match := _EACH.fullmatch(name):
                part = _PARTS.get(match["part"], match["part"])
                found.each.setdefault(match["root"], {})[int(match["expert"]), part] = name
            elif match := _FUSED.fullmatch(name):
                found.fused.setdefault(match["root"], {})[match["part"]] = name
        return found


def match_expert_layout(view: View, base: View, findings: Findings, where: str) -> None:
    """Give a routed expert the base's tensors, as pieces of its own where the layouts differ."""
    if view.model.adapter is not None:
        return
    wanted, own = Routed.of(base.tensors), Routed.of(view.tensors)
    made: dict[str, Made] = {}
    used: set[str] = set()
    moved: dict[str, str] = {}
    for root in wanted.each.keys() | wanted.fused.keys():
        mine = _same_layer(root, own)
        if mine is None:
            continue
        found: dict[str, Made] | None = None
        if root in wanted.each and mine in own.fused:
            found = _split(wanted.each[root], own.fused[mine], view, base)
            used |= set(own.fused[mine].values())
        elif root in wanted.fused and mine in own.each:
            found = _stacked(wanted.fused[root], own.each[mine], view, base)
            used |= set(own.each[mine].values())
        if found is None:
            continue
        if not found:
            _refuse(root, mine, view, base, findings, where)
            return
        made |= found
        moved[mine] = root
    if not made:
        return
    tensors = {_moved(n, moved): info for n, info in view.tensors.items() if n not in used}
    tensors |= {name: info for name, (info, _) in made.items()}
    view.pieced |= {name: read for name, (_, read) in made.items()}
    view.model = replace(view.model, header=replace(view.model.header, tensors=tensors))
    findings.warn(
        f"expert `{view.name}` stores its experts in another layout; they are read in the base's"
        f" ({plural(len(made), 'tensor')})",
        where,
    )


def _same_layer(root: str, own: Routed) -> str | None:
    """Return the module that is an expert's for a module of the base, under whatever name."""
    known = own.each.keys() | own.fused.keys()
    if root in known:
        return root
    layer = root.rpartition(".")[0]
    return next((name for name in sorted(known) if name.rpartition(".")[0] == layer), None)


def _moved(name: str, moved: Mapping[str, str]) -> str:
    """Return a name, a router's say, below the module that the base has in its place."""
    for mine, root in moved.items():
        if mine != root and name.startswith(f"{mine}."):
            return root + name[len(mine) :]
    return name


def _split(
    wanted: Mapping[tuple[int, str], str], fused: Mapping[str, str], view: View, base: View
) -> dict[str, Made]:
    """Return each expert's matrices as pieces of fused tensors; nothing where these do not fit."""
    made: dict[str, Made] = {}
    experts = 1 + max(expert for expert, _ in wanted)
    for (expert, part), name in wanted.items():
        info = base.tensors[name]
        stored = fused.get("down_proj" if part == "down_proj" else "gate_up_proj", "")
        rows = 1 if part == "down_proj" else 2
        if stored not in view.tensors or len(info.shape) != 2:
            return {}
        whole = view.tensors[stored]
        if whole.shape != (experts, rows * info.shape[0], info.shape[1]):
            return {}
        first = (expert * rows + (part == "up_proj")) * info.size
        piece = Piece(whole.name, first, info.size)
        made[name] = _made(view, name, info.shape, [(piece, whole)])
    return made


def _stacked(
    wanted: Mapping[str, str], each: Mapping[tuple[int, str], str], view: View, base: View
) -> dict[str, Made]:
    """Return fused tensors as all experts' matrices; nothing where these do not fit."""
    made: dict[str, Made] = {}
    experts = 1 + max(expert for expert, _ in each)
    for fused, name in wanted.items():
        shape = base.tensors[name].shape
        parts = ("gate_proj", "up_proj") if fused == "gate_up_proj" else ("down_proj",)
        stored = [view.tensors.get(each.get((e, p), "")) for e in range(experts) for p in parts]
        infos = [info for info in stored if info is not None]
        if len(infos) < len(stored) or len(shape) != 3 or experts != shape[0]:
            return {}
        if {info.shape for info in infos} != {(shape[1] // len(parts), shape[2])}:
            return {}
        pieces = [(Piece(info.name, 0, info.size), info) for info in infos]
        made[name] = _made(view, name, shape, pieces)
    return made


def _made(
    view: View, name: str, shape: tuple[int, ...], pieces: list[tuple[Piece, TensorInfo]]
) -> Made:
    like = pieces[0][1]
    info = TensorInfo(name, like.dtype, shape, like.file, like.start)
    made = {stored.name: stored for _, stored in pieces if stored.is_made}
    read = Read(
        view.name,
        pieces[0][0].name,
        nbytes=info.nbytes,
        made=bool(made),
        held=sum(one.held for one in made.values()),
        pieces=tuple(piece for piece, _ in pieces),
    )
    return info, read


def _refuse(root: str, mine: str, view: View, base: View, findings: Findings, where: str) -> None:
    def layout(input_: View, module: str) -> str:
        start = f"{module}.experts."
        names = [name for name in input_.tensors if name.startswith(start)]
        first = names[0]
        shape = shape_text(input_.tensors[first].shape)
        return f"{plural(len(names), 'tensor')} such as `{first}` {shape}"

    findings.problem(
        f"expert `{view.name}` stores its experts in a layout that cannot be read as the base's:"
        f" {layout(view, mine)}; the base has {layout(base, root)}",
        where,
        "only models with as many experts of one size, gate rows before up rows, can be matched",
    )
    view.settled = True

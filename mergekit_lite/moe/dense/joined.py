"""The rows of a dense model whose layers are the slices of a carved one, in their old order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.errors import DataError
from mergekit_lite.moe.dense.carved import Carving, read_carving
from mergekit_lite.moe.dense.slices import slices
from mergekit_lite.moe.dense.twins import twin_config
from mergekit_lite.moe.families import PARTS
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame
from mergekit_lite.plan.inputs import View, placed
from mergekit_lite.plan.row_memory import TILE_ENTRIES
from mergekit_lite.plan.types import Block, Job, Order, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})
_RESTORE = "restore the weights that the carve has written"


@dataclass(frozen=True)
class Joined:
    """A carved model that becomes the dense one again.

    Attributes:
        carving: how it was carved.
        roots: layer -> its name, such as `model.layers.3`.
        hidden: width of the stream.
        config: entries of the config that change.
        gone: entries that go.
    """

    carving: Carving
    roots: Mapping[int, str]
    hidden: int
    config: Mapping[str, Any]
    gone: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return what the card says, and what the rows need, as plain data."""
        orders = {order_name(root): layer for layer, root in self.roots.items()}
        facts = {"method": "concat", "neurons_sha256": self.carving.sha256}
        return {"dense": {**facts, "orders": orders}}


def order_name(root: str) -> str:
    """Return the name of the tensor that says where each neuron of a layer stands."""
    return f"{root}.neurons"


def settle_joined(recipe: Recipe, base: View, findings: Findings) -> Joined | None:
    """Return the dense model that a carved one was; None with problems noted."""
    config, where = base.model.config or {}, recipe.at("base")
    try:
        carving = read_carving(base.model.root, config)
    except DataError as error:
        findings.problems += placed(error.problems, where)
        return None
    first = next(iter(carving.family.experts.values())).format(e=0)
    found = [name.removesuffix(f".{first}") for name in base.tensors if name.endswith(f".{first}")]
    roots = {int(root.rpartition(".")[2]): root for root in found}
    hidden = configs.value(config, "hidden_size")
    if roots.keys() != carving.places.keys() or type(hidden) is not int:
        findings.problem(
            f"layers {sorted(carving.places)} were carved, and experts are in {sorted(roots)}",
            where,
            _RESTORE,
        )
        return None
    changed, gone = twin_config(config, carving)
    joined = Joined(carving, dict(sorted(roots.items())), hidden, changed, gone)
    return joined if _is_whole(joined, base, findings, where) else None


def _is_whole(joined: Joined, base: View, findings: Findings, where: str) -> bool:
    """Return whether every slice is there in the size that the carve has made; else note it."""
    count, hidden = joined.carving.count, joined.hidden
    for root in joined.roots.values():
        for part in PARTS:
            try:
                shapes = [one.shape for one in slices(joined.carving, root, part, base.tensors)]
            except KeyError as error:
                findings.problem(f"there is no `{error.args[0]}`", where, _RESTORE)
                return False
            sizes = [shape if part != "down" else shape[::-1] for shape in shapes]
            if sum(rows for rows, _ in sizes) != count or {width for _, width in sizes} != {hidden}:
                what = f"slices of `{root}` are not of the {count} places of `{part}` carved"
                findings.problem(what, where, _RESTORE)
                return False
    return True


def jobs(joined: Joined, rows: Rows, recipe: Recipe, frame: Frame) -> Iterator[Job]:
    """Yield every row of the result.

    Args:
        joined: what becomes of the base.
        rows: makes rows that take a tensor of the base.
        recipe: what is wanted.
        frame: the base's tensors.
    """
    where = recipe.at("moe", "dense")
    family = joined.carving.family
    listed = [*family.experts.values(), *(family.shared.names.values() if family.shared else ())]
    modules = {name.split(".")[0] for name in listed}
    owner = {f"{root}.{module}": root for root in joined.roots.values() for module in modules}
    infos = {target.name: target.info for target in frame.targets}
    taken: dict[str, dict[str, Job]] = {}
    for target in frame.targets:
        job = rows.taken(target, BASE, where, "`moe.dense`")
        root = owner.get(_module_of(target.name, owner))
        if job is not None and root is None:
            yield job
        elif job is not None and root is not None:
            taken.setdefault(root, {})[target.name] = job
    for root, own in taken.items():
        for part in PARTS:
            yield _joined(joined, root, part, own, infos)


def _module_of(name: str, owner: Mapping[str, str]) -> str:
    """Return the feed-forward module that a tensor lies in, nothing for any other."""
    parts = name.split(".")
    above = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((module for module in above if module in owner), "")


def _joined(
    joined: Joined, root: str, part: str, own: Mapping[str, Job], tensors: Mapping[str, TensorInfo]
) -> Job:
    """Return the row of one matrix: all slices side by side, then in the old order."""
    width, count, hidden = joined.carving.width, joined.carving.count, joined.hidden
    down = part == "down"
    found = list(slices(joined.carving, root, part, tensors))
    blocks = []
    for one in found:
        read, stored = own[one.name].reads[0], tensors[one.name].shape
        used = replace(read, nbytes=read.nbytes * prod(one.shape) // max(prod(stored), 1))
        matrix = prod(stored[:-1]), stored[-1]
        blocks.append(Block(used, matrix, (one.first, 0), one.shape, 1 / one.factor))
    inner = _read_of(blocks, beside=down)
    stored = (hidden, count) if down else (count, hidden)
    shape = (hidden, width) if down else (width, hidden)
    order = Order(order_name(root), "columns" if down else "rows", (stored[0], stored[1]))
    block = Block(inner, shape, (0, 0), shape, 1.0, order)
    # Some whole rows, as they are stored and beside each other.
    held = inner.held + (16 * max(TILE_ENTRIES, count) if down else 0)
    read = replace(_read_of([block], beside=False), held=held)
    return replace(
        own[found[0].name],
        name=f"{root}.mlp.{part}_proj.weight",
        shape=shape,
        reads=(read,),
        base=None,
        kind="merge",
        steps=(_COPIED,),
    )


def _read_of(blocks: Sequence[Block], *, beside: bool) -> Read:
    reads = [block.read for block in blocks]
    return Read(
        reads[0].source,
        reads[0].name,
        nbytes=sum(read.nbytes for read in reads),
        made=any(read.made for read in reads),
        held=sum(read.held for read in reads),
        blocks=tuple(blocks),
        beside=beside,
    )

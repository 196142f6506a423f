"""The rows of a routed model: experts, shared expert and what is made for the routers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint import role_of
from mergekit_lite.moe.assembly import Assembly, FeedForward, MadeRow
from mergekit_lite.moe.families import PARTS
from mergekit_lite.moe.parts import COPIED, Matrix, Part, scaled, zeros
from mergekit_lite.ops._place import random_key
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame, Target
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.layout import output_dtype
from mergekit_lite.plan.made import made_job
from mergekit_lite.plan.row_memory import TILE_ENTRIES
from mergekit_lite.plan.runs import is_moved
from mergekit_lite.plan.types import Block, Job, Order, Read, Step
from mergekit_lite.recipe.schema import BASE, MoeExpert, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows


class RoutedRows:
    """Makes the rows of a routed model.

    Args:
        assembly: what is assembled.
        rows: makes the rows of all other tensors.
        recipe: what is wanted.
        found: the base and the experts.
        findings: where problems are noted.
    """

    def __init__(
        self,
        assembly: Assembly,
        rows: Rows,
        recipe: Recipe,
        found: Mapping[str, View],
        findings: Findings,
    ) -> None:
        self.assembly, self.rows, self.recipe = assembly, rows, recipe
        self.found, self.findings = found, findings
        self.feed = FeedForward.of(found[BASE].tensors)
        self.made: dict[int, list[MadeRow]] = {}
        self.orders: dict[str, int] = {}
        for row in assembly.made_rows():
            self.made.setdefault(row.layer, []).append(row)
            if row.kind == "order":
                self.orders[row.name] = row.shape[0]

    def jobs(self, frame: Frame) -> Iterator[Job]:
        """Yield every row of the output; a layer's experts stand where its dense layer stood."""
        done: set[int] = set()
        sizes = self.assembly.sizes
        routed = {
            name: layer
            for layer in (*sizes.routed, *sizes.identical)
            for name in self.feed.names[layer].values()
        }
        targets = {target.name: target for target in frame.targets if target.name in routed}
        for target in frame.targets:
            layer = routed.get(target.name)
            if layer is None:
                job = self.rows.row(target)
                if job is not None:
                    yield job
            elif layer not in done:
                done.add(layer)
                if layer in sizes.identical:
                    yield from self._layer(layer, self._copies(layer, targets), silent=True)
                else:
                    yield from self._layer(layer, list(self.experts_of(layer)))

    def _layer(
        self,
        layer: int,
        experts: Sequence[tuple[MoeExpert, Mapping[str, Part]]],
        *,
        silent: bool = False,
    ) -> Iterator[Job]:
        """Yield the rows of a layer; a silent shared expert adds nothing."""
        root, family = self.assembly.root(layer), self.assembly.family
        for row in self.made[layer]:
            if row.kind != "order":
                yield self._made(row)
        if any(len(parts) < len(PARTS) for _, parts in experts):
            return
        if family.fused:
            yield from self._fused(layer, [parts for _, parts in experts], family.experts)
        else:
            for number, (expert, parts) in enumerate(experts):
                for part, name in family.experts.items():
                    job = self._job(f"{root}.{name.format(e=number)}", parts[part], layer)
                    job = self._redrawn(job, expert, part, f"{root}.{number}")
                    yield self._noisy(job, expert)
        yield from self._shared(layer, silent=silent)

    def _copies(
        self, layer: int, targets: Mapping[str, Target]
    ) -> list[tuple[MoeExpert, Mapping[str, Part]]]:
        """Return the matrices of a layer's experts that are all the base's own layer."""
        width, found = self.assembly.sizes.width, {}
        for part in PARTS:
            job = self.rows.row(targets[self.feed.names[layer][part]])
            if job is None or job.base is not None or [r.source for r in job.reads] != [BASE]:
                self.findings.problem_with(
                    f"`{self.feed.names[layer][part]}`",
                    "`outside: identical` copies the base's own feed-forward layers, and these are"
                    " merged or left out",
                    self.recipe.at("moe", "outside"),
                    "merge in a stage and write `base: '@STAGE'`, or a rule that takes the base's",
                )
                continue
            found[part] = Part(job, self._shape(part, width))
        own = MoeExpert(expert=BASE, where=self.recipe.at("moe", "outside"))
        return [(own, found)] * self.assembly.sizes.experts

    def experts_of(self, layer: int) -> Iterator[tuple[MoeExpert, Mapping[str, Part]]]:
        """Yield the matrices of every routed expert of a layer."""
        mapped = self.assembly.expert_map
        for number, expert in enumerate(self.assembly.experts):
            if mapped is None or mapped[number] not in mapped[:number]:
                yield from self._slices(layer, expert)

    def _slices(
        self, layer: int, expert: MoeExpert
    ) -> Iterator[tuple[MoeExpert, Mapping[str, Part]]]:
        """Yield the matrices of each slice of an expert: it as a whole, where it is not cut.

        Each slice gets a part of the weight that the whole would have, which its down projection
        makes up for.
        """
        if expert.child is not None:
            yield expert, self._born(layer, expert.child)
            return
        split, width = self.assembly.sizes.split, self.assembly.sizes.width
        scales = {"down": expert.residual_scale * split}
        whole = {
            part: found
            for part in PARTS
            if (found := self.part(layer, part, expert.expert, width, scales.get(part, 1.0)))
        }
        for number in range(split):
            first = number * width
            yield (
                expert,
                {
                    part: replace(found, first=(0, first) if part == "down" else (first, 0))
                    for part, found in whole.items()
                },
            )

    def _born(self, layer: int, child: int) -> dict[str, Part]:
        """Return the matrices of an expert that is made of two others."""
        width, found = self.assembly.sizes.width, {}
        expand, seed = self.assembly.expand, self.recipe.seed
        for part in PARTS:
            name = self.feed.names[layer][part]
            sides = [self.part(layer, part, one, width) for one in (BASE, *self.assembly.parents)]
            jobs = [side.job for side in sides if side is not None]
            if expand is None or len(jobs) < len(sides):
                continue
            params = {
                "child": child,
                "density": expand.density,
                # As JSON numbers go no further.
                "lots": random_key(seed, "upit", "", "") >> 12,
                "draw": random_key(seed, "upit", "", name) >> 12,
                "weights": [1.0] * (len(jobs) - 1),
            }
            job = replace(
                jobs[0],
                kind="merge",
                base=jobs[0].reads[0],
                reads=tuple(job.reads[0] for job in jobs[1:]),
                steps=(Step("upit", params),),
            )
            found[part] = Part(job, self._shape(part, width))
        return found

    def _shape(self, part: str, width: int) -> Matrix:
        hidden = self.assembly.donor.hidden
        return (hidden, width) if part == "down" else (width, hidden)

    def part(
        self, layer: int, part: str, source: str, width: int, scale: float = 1.0
    ) -> Part | None:
        """Return a matrix of an input; None where it has a problem, which is noted."""
        name = self.feed.names[layer][part]
        info = self.found[BASE].tensors[name]
        own = self.found[source].shape(name) or info.shape
        stored = replace(info, shape=own)
        where = self.recipe.at("moe", "experts")
        job = self.rows.taken(Target(stored, layer, role_of(name)), source, where, "`moe`")
        return None if job is None else Part(job, self._shape(part, width), scale)

    def _job(self, name: str, part: Part, layer: int) -> Job:
        """Return the row of one matrix under its new name."""
        job = part.job
        rows, columns = job.shape[0], job.shape[1]
        if (rows, columns) != part.shape or part.order is not None:
            read = self._window(replace(part, scale=1.0))
            moved = job.kind == "copy" and is_moved(read)
            job = replace(job, shape=part.shape, reads=(read,))
            job = job if moved else replace(job, kind="merge", steps=(COPIED,))
        job = replace(job, name=name, layer=layer)
        return scaled(job, part.scale) if part.scale != 1.0 else job

    def _window(self, part: Part) -> Read:
        """Return a matrix as one of another size: cut off, or with zeros around it."""
        job = part.job
        read = job.reads[0]
        if read.lora is not None or job.base is not None:
            self.findings.problem(
                f"expert `{read.source}` is an adapter, which is neither padded, cut nor stacked",
                self.recipe.at("experts", read.source),
                "merge it in a stage and name `@STAGE` as the expert's model",
            )
        stored = (job.shape[0], job.shape[1])
        nbytes, held = read.nbytes, read.held
        if part.order is not None:
            order, whole = part.order, stored
            stored = self.reordered(order)
            if order.axis == "rows":
                nbytes = nbytes * part.shape[0] // max(whole[0], 1)
            else:
                # Some whole rows, of which each slice takes its columns.
                held += 8 * (max(TILE_ENTRIES, whole[1]) + stored[1])
        block = Block(read, stored, part.first, part.shape, part.scale, part.order)
        return Read(
            read.source, read.name, nbytes=nbytes, made=read.made, held=held, blocks=(block,)
        )

    def reordered(self, order: Order) -> Matrix:
        """Return the size of a matrix after it is put in another order."""
        count = self.orders[order.name]
        return (count, order.stored[1]) if order.axis == "rows" else (order.stored[0], count)

    def _fused(
        self, layer: int, experts: Sequence[Mapping[str, Part]], names: Mapping[str, str]
    ) -> Iterator[Job]:
        """Yield the two tensors of a layer in which all experts lie one after the other."""
        root = self.assembly.root(layer)
        for expert in self.assembly.experts:
            if expert.noise is not None or expert.redraw is not None:
                self.findings.problem(
                    f"a `{self.assembly.family.name}` model stores all experts in one tensor, and"
                    f" `{expert.expert}` alone cannot get noise or new neurons there",
                    expert.where,
                    "add it in a stage with `perturb` and name `@STAGE`, or take another `target`",
                )
        pairs = {"gate_up": ("gate", "up"), "down": ("down",)}
        for stacked, name in names.items():
            parts = [expert[part] for expert in experts for part in pairs[stacked]]
            rows, columns = parts[0].shape
            shape = (len(experts), rows * len(pairs[stacked]), columns)
            yield self._stacked(f"{root}.{name}", parts, shape, layer)

    def _stacked(self, name: str, parts: Sequence[Part], shape: tuple[int, ...], layer: int) -> Job:
        blocks = [block for part in parts for block in self._window(part).blocks]
        first = parts[0].job
        read = Read(
            blocks[0].read.source,
            blocks[0].read.name,
            nbytes=sum(block.read.nbytes for block in blocks),
            made=any(block.read.made for block in blocks),
            held=sum(block.read.held for block in blocks),
            blocks=tuple(blocks),
        )
        moved = is_moved(read) and all(part.job.kind == "copy" for part in parts)
        return Job(
            name=name,
            dtype=first.dtype,
            shape=shape,
            shard=0,
            start=0,
            kind="copy" if moved else "merge",
            reads=(read,),
            steps=() if moved else (COPIED,),
            layer=layer,
            rule=first.rule,
        )

    def _redrawn(self, job: Job, expert: MoeExpert, part: str, group: str) -> Job:
        """Return a row in which a part of the neurons is drawn anew."""
        asked = expert.redraw
        if asked is None:
            return job
        if self.assembly.sizes.split > 1 or expert.noise is not None:
            self.findings.problem(
                "`redraw` goes together with neither `split` nor `noise`",
                expert.where,
                "do one of them",
            )
        scale = job.steps[0].params["scale"] if job.steps else 1.0
        step = Step(
            "drop_upcycle",
            {
                "ratio": asked.ratio,
                "neurons": "columns" if part == "down" else "rows",
                # As JSON numbers go no further.
                "draw": random_key(self.recipe.seed, "drop_upcycle", "", group) >> 12,
                "choice": part if asked.index_set == "independent" else "shared",
                "scale": scale,
                "weights": [1.0],
            },
        )
        return replace(job, kind="merge", steps=(step,))

    def _noisy(self, job: Job, expert: MoeExpert) -> Job:
        if expert.noise is None or expert.noise.scale == 0:
            return job
        scale = job.steps[0].params["scale"] if job.steps else 1.0
        step = Step(
            "perturb",
            {
                "noise": expert.noise.scale,
                "relative": expert.noise.relative,
                "scale": scale,
                "weights": [1.0],
            },
        )
        return replace(job, kind="merge", steps=(step,))

    def _shared(self, layer: int, *, silent: bool) -> Iterator[Job]:
        asked, holds = self.assembly.shared, self.assembly.family.shared
        if asked is None or holds is None:
            return
        root, width = self.assembly.root(layer), self.assembly.sizes.shared_width
        silent = silent or asked.expert == "zero"
        source = BASE if silent else asked.expert
        # The sigmoid that weighs it is a half, which twice the weights make up for.
        scales = {"down": asked.residual_scale * (2.0 if holds.sigmoid else 1.0)}
        whole = {
            part: self.shared_part(layer, part, found)
            for part in PARTS
            if (found := self.part(layer, part, source, width, scales.get(part, 1.0)))
        }
        if len(whole) < len(PARTS):
            return
        if "gate_up" in holds.names:
            shape = (2 * width, self.assembly.donor.hidden)
            yield self._stacked(
                f"{root}.{holds.names['gate_up']}", [whole["gate"], whole["up"]], shape, layer
            )
        else:
            for part in ("gate", "up"):
                yield self._job(f"{root}.{holds.names[part]}", whole[part], layer)
        name = f"{root}.{holds.names['down']}"
        down = self._job(name, whole["down"], layer)
        yield zeros(down) if silent else down

    def shared_part(self, layer: int, part: str, found: Part) -> Part:
        """Return a matrix of the shared expert, given the first neurons of its source."""
        return found

    def _made(self, row: MadeRow) -> Job:
        """Return the row of a tensor that is made before the rows run."""
        base = self.found[BASE].tensors[self.feed.names[row.layer]["gate"]]
        dtype = output_dtype(base.dtype, self.recipe.output.dtype)
        if row.kind == "bias" or (row.kind == "tiny" and dtype == "F16"):
            dtype = "F32"  # choices hang on small differences; 2^-30 is zero in half precision
        rule = f"{self.recipe.at('moe', 'gate')} made by the gate `{self.assembly.gate}`"
        return made_job(row.name, dtype, row.shape, row.layer, rule)

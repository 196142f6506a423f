"""Rows of an adapter in place of a model: from the rows of a merge to those of its factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit_lite.checkpoint import LoraFactors
from mergekit_lite.ops import registry
from mergekit_lite.ops._statistics import Order
from mergekit_lite.plan.adapter_config import PREFIX, lora_config
from mergekit_lite.plan.adapter_kinds import (
    changing,
    form_of,
    is_merged,
    module_of,
    runs_of,
    unmerged,
)
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.layout import OUTPUT_DTYPES
from mergekit_lite.plan.row_kinds import Fusion
from mergekit_lite.plan.row_maps import RowMap
from mergekit_lite.plan.types import Gather, Job, Read, Step
from mergekit_lite.recipe.schema import LoraOutput, Recipe

SUMS = ("cat", "svd", "linear", "mean")
"""Methods that add the deltas up; the others run a chain of ops in a space of their own."""

_IDENTITY = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})


@dataclass
class AdapterRows:
    """Turns the rows that a merge into the base would have into rows of an adapter.

    Args:
        recipe: with `output.lora`.
        found: the base and the experts.
        findings: where problems are noted.
    """

    recipe: Recipe
    found: Mapping[str, View]
    findings: Findings
    ranks: dict[str, int] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    transposed: set[bool] = field(default_factory=set)
    biases: set[str] = field(default_factory=set)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    row_maps: dict[str, RowMap] = field(default_factory=dict)

    @property
    def wanted(self) -> LoraOutput:
        """What the recipe says about the adapter."""
        lora = self.recipe.output.lora
        return lora if lora is not None else LoraOutput()

    def rows(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the rows of the adapter's tensors; the base's rows that only copy it fall out."""
        where = self.recipe.at("output", "lora")
        for name, expert in self.recipe.experts.items():
            if expert.lora is None:
                self.findings.problem(
                    f"expert `{name}` is a model; an adapter is made of adapters only",
                    self.recipe.at("experts", name),
                    "make an adapter of it first: `mergekit-lite extract-lora`",
                )
        changed = [
            (job, kind)
            for job in jobs
            if changing(job) and (kind := self._kind(job, where)) is not None
        ]
        whole = [job for job, kind in changed if kind == "whole"]
        self.saved = {module_of(job) for job in whole if job.name.endswith(".weight")}
        adapted = {module_of(job) for job, kind in changed if kind == "factors"}
        rows: list[Job] = []
        for job, kind in changed:
            if kind == "factors":
                rows += self._factors(job, [r for r in job.reads if r.lora is not None], where)
            elif kind == "tokens":
                rows.append(self._tokens(job))
            else:
                rows.append(self._whole(job, adapted))
        if not rows and not self.findings.all_problems():
            self.findings.problem("no tensor of the base is changed by any adapter", where)
        if len(self.transposed) > 1:
            self.findings.problem(
                "adapters differ in `fan_in_fan_out`, which holds for a whole adapter", where
            )
        return rows

    def _kind(self, job: Job, where: str) -> str | None:
        """Return what a row becomes: `factors`, `whole` (a bias too) or `tokens`.

        None where the adapters hold what cannot be merged, which is noted.
        """
        read = changing(job)
        odd = [r for r in read if r.gather or (r.lora is not None and not is_merged(r.lora))]
        for one in odd:
            why, hint = unmerged(one.lora)
            self.findings.problem_with(
                f"`{job.name}`", f"expert `{one.source}` holds {why}", where, hint
            )
        if odd:
            return None
        kinds = {form_of(one.lora) for one in read}
        if "factors" in kinds and len(kinds) > 1:
            other = "the whole tensor" if "whole" in kinds else "single rows (trained tokens)"
            self.findings.problem_with(
                f"`{job.name}`", f"some adapters have factors, others {other}", where,
                "leave it out by a rule: `drop: true`",
            )  # fmt: skip
            return None
        return "whole" if "whole" in kinds else kinds.pop()

    @property
    def _dtype(self) -> str:
        return OUTPUT_DTYPES.get(self.recipe.output.dtype, "F32")

    def _whole(self, job: Job, adapted: Collection[str]) -> Job:
        """Return the row of a tensor that the adapter holds as it will be: a module's, or a bias.

        A bias of a module that has factors is called that of the layer under them.
        """
        module, _, leaf = job.name.rpartition(".")
        name = job.name
        if leaf == "bias" and module not in self.saved:
            self.biases.add("lora_only" if module in adapted else "all")
            name = f"{module}.base_layer.bias" if module in adapted else name
        return self._kept(job, name)

    def _kept(self, job: Job, name: str) -> Job:
        """Return a row of a whole tensor, merged by the recipe's steps; for `mean`, their mean."""
        steps = job.steps or (_IDENTITY,)
        if self.wanted.method == "mean" and _is_sum(steps):
            weights = [1.0] * len(job.reads)
            steps = (Step("task_arithmetic", {"weights": weights, "normalize": True}),)
        # A copy is made a row that casts, as the adapter has a dtype of its own.
        return replace(
            job, name=f"{PREFIX}{name}", dtype=self._dtype, kind="merge", steps=tuple(steps)
        )

    def _tokens(self, job: Job) -> Job:
        """Return the row of an embedding's rows that adapters hold: all that any of them has."""
        rows = sorted({row for read in job.reads if read.lora for row in read.lora.rows})
        key, module = f"trained tokens of {job.name}", module_of(job)
        self.tokens[module] = rows
        self.row_maps[key] = RowMap(len(rows), (job.shape[0],), runs_of(rows))
        base = self.found["base"]
        stored = base.tensors[base.renamed.get(job.name, job.name)].loaded

        def gathered(read: Read) -> Read:
            if read.zero:
                return read
            dtype = stored if read.lora is None and not read.made else "F32"
            return replace(read, gather=Gather(key, (read,), dtype))

        kept = self._kept(job, f"{module}.token_adapter.trainable_tokens_delta")
        return replace(
            kept,
            shape=(len(rows), *job.shape[1:]),
            base=gathered(job.base) if job.base is not None else None,
            reads=tuple(map(gathered, job.reads)),
        )

    def _factors(self, job: Job, reads: Sequence[Read], where: str) -> list[Job]:
        """Return the rows of both factors of one weight."""
        sizes = [self._sizes(read) for read in reads]
        wide, tall = sizes[0][0], sizes[0][1]
        total = sum(rank for _, _, rank in sizes)
        rank = self._rank(job, [rank for _, _, rank in sizes], total, where)
        if not self._sound(job, where) or rank == 0:
            return []
        module = module_of(job)
        self.ranks[module] = rank
        embedding = ".lora_embedding_" in _plain(reads[0]).a
        if not embedding:
            self.transposed |= {_plain(read).transpose for read in reads}
        end = "lora_embedding_{}" if embedding else "lora_{}.weight"
        shapes = {"A": (rank, *wide), "B": (tall, rank, *[1] * (len(wide) - 1))}
        return [
            replace(
                job,
                name=f"{PREFIX}{module}.{end.format(part)}",
                dtype=self._dtype,
                shape=shape,
                kind="merge",
                base=None,
                fusion=Fusion(self._method(job), part, rank, job.name, job.shape),
            )
            for part, shape in shapes.items()
        ]

    def _sizes(self, read: Read) -> tuple[tuple[int, ...], int, int]:
        """Return the shape of A without its rank, the outputs and the rank of a plain pair."""
        tensors = self.found[read.source].model.header.tensors
        a, b = tensors[_plain(read).a].shape, tensors[_plain(read).b].shape
        return a[1:], b[0], a[0]

    def _method(self, job: Job) -> str:
        """Return the method of a row; what a rule takes from one adapter is that adapter's."""
        return "cat" if _is_taken(job) else self.wanted.method

    def _rank(self, job: Job, ranks: Sequence[int], total: int, where: str) -> int:
        method, wanted = self._method(job), self.wanted.rank
        if _is_taken(job):
            return ranks[0]
        if method == "linear":
            if len(set(ranks)) > 1:
                self.findings.problem_with(
                    f"`{job.name}`", "`linear` adds factors of equal ranks only", where,
                    "use `cat`, `svd` or `core_space`",
                )  # fmt: skip
            return ranks[0]
        if method == "cat" or (method == "mean" and wanted is None):
            return total
        if method == "svd" and wanted is None:
            return max(ranks)
        return min(wanted or total, total)

    def _sound(self, job: Job, where: str) -> bool:
        specs = registry()
        ops = [specs[step.op] for step in job.steps]
        before = len(self.findings.all_problems())
        method = self._method(job)
        if _is_taken(job):
            return True
        if method in SUMS and not _is_sum(job.steps):
            self.findings.problem(
                f"`{method}` adds the adapters up, the steps do more than that",
                where,
                "use `method: core_space` or `knots`, which run any steps in a small space",
            )
        for step, spec in zip(job.steps, ops, strict=True):
            if spec.kind == "combine" and spec.space == "weight":
                self.findings.problem(
                    f"`{step.op}` works on whole weights, an adapter holds none", where,
                    "use `task_arithmetic`, with `normalize: true` for a mean",
                )  # fmt: skip
            of_model = isinstance(spec.needs, Order) and spec.needs.of_model(step.params)
            if of_model or spec.calibration:
                self.findings.problem(
                    f"`{step.op}` wants a statistic of the whole model, which factors do not give",
                    where,
                    "use `scope: tensor`" if of_model else "merge into the base instead",
                )
        return len(self.findings.all_problems()) == before

    def config(self) -> dict[str, Any]:
        """Return `adapter_config.json` of the result; every pair has scale 1."""
        adapters = [v.model.adapter for v in self.found.values() if v.model.adapter is not None]
        usual = Counter(self.ranks.values()).most_common(1)[0][0] if self.ranks else 1
        others = {module: rank for module, rank in self.ranks.items() if rank != usual}
        task = next(
            (a.config.get("task_type") for a in adapters if a.config.get("task_type")), None
        )
        base = next((a.base_model for a in adapters if a.base_model), "")
        return lora_config(
            self.ranks,
            self.found["base"].base,
            rank=usual,
            patterns=others,
            saved=sorted(self.saved),
            base_model=base or self.found["base"].model.reference,
            task_type=task,
            transposed=self.transposed == {True},
            bias="all" if "all" in self.biases else "lora_only" if self.biases else "none",
            tokens=self.tokens,
        )


def _plain(read: Read) -> LoraFactors:
    if read.lora is None:
        raise ValueError(f"`{read.source}` has no factors")
    return read.lora


def _is_taken(job: Job) -> bool:
    return len(job.steps) == 1 and job.steps[0].op in ("passthrough", "take")


def _is_sum(steps: Sequence[Step]) -> bool:
    ops = [step.op for step in steps]
    return ops[:1] == ["task_arithmetic"] and set(ops[1:]) <= {"scale"}

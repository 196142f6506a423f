"""Rows of an adapter in place of a model: from the rows of a merge to those of its factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit_lite.checkpoint import LoraFactors
from mergekit_lite.ops import registry
from mergekit_lite.ops._statistics import Order
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.layout import OUTPUT_DTYPES
from mergekit_lite.plan.types import Fusion, Job, Read, Step
from mergekit_lite.recipe.schema import LoraOutput, Recipe

PREFIX = "base_model.model."
WEIGHT_FILE = "adapter_model.safetensors"
SUMS = ("cat", "svd", "linear", "mean")
"""Methods that add the deltas up; the others run a chain of ops in a space of their own."""


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
        rows: list[Job] = []
        for job in jobs:
            if job.reads and not all(r.zero or r.source == "base" for r in job.reads):
                rows += self._row(job, where)
        if not rows and not self.findings.all_problems():
            self.findings.problem("no tensor of the base is changed by any adapter", where)
        if len(self.transposed) > 1:
            self.findings.problem(
                "adapters differ in `fan_in_fan_out`, which holds for a whole adapter", where
            )
        return rows

    def _row(self, job: Job, where: str) -> list[Job]:
        read = [r for r in job.reads if not r.zero and r.source != "base"]
        odd = [r for r in read if r.gather or (r.lora is not None and not r.lora.is_plain)]
        whole = [r for r in read if r.lora is None]
        for one in odd:
            self.findings.problem_with(
                f"`{job.name}`",
                f"expert `{one.source}` holds {_kind(one.lora)}, which no sum of factors says",
                where,
                "merge it into the base without `output.lora`, then `mergekit-lite extract-lora`",
            )
        if whole and len(whole) < len(read):
            self.findings.problem_with(
                f"`{job.name}`", "some adapters have factors, others the whole tensor", where,
                "leave it out by a rule: `drop: true`",
            )  # fmt: skip
            return []
        if odd:
            return []
        dtype = OUTPUT_DTYPES.get(self.recipe.output.dtype, "F32")
        if whole:
            if not job.name.endswith(".weight"):
                self.findings.problem_with(
                    f"`{job.name}`", "a trained bias has no place in the merged adapter", where,
                    "leave it out by a rule: `drop: true`",
                )  # fmt: skip
            self.saved.add(job.name.removesuffix(".weight"))
            # A copy is made a row that casts, as the adapter has a dtype of its own.
            return [_as_saved(job, dtype)]
        return self._factors(job, [r for r in read if r.lora is not None], dtype, where)

    def _factors(self, job: Job, reads: Sequence[Read], dtype: str, where: str) -> list[Job]:
        """Return the rows of both factors of one weight."""
        sizes = [self._sizes(read) for read in reads]
        wide, tall = sizes[0][0], sizes[0][1]
        total = sum(rank for _, _, rank in sizes)
        rank = self._rank(job, [rank for _, _, rank in sizes], total, where)
        if not self._sound(job, where) or rank == 0:
            return []
        module = job.name.removesuffix(".weight")
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
                dtype=dtype,
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
        )


def lora_config(
    modules: Mapping[str, int],
    base: Mapping[str, Any],
    *,
    rank: int,
    patterns: Mapping[str, int],
    saved: Sequence[str],
    base_model: str,
    task_type: str | None,
    transposed: bool = False,
) -> dict[str, Any]:
    """Return what PEFT needs to know of an adapter whose every pair of factors has scale 1."""
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": dict(patterns),
        "alpha_pattern": dict(patterns),
        "target_modules": targets(modules, base),
        "modules_to_save": list(saved) or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def targets(modules: Mapping[str, int], base: Mapping[str, Any]) -> list[str]:
    """Return the names by which PEFT finds the modules: their last parts, where that is enough.

    Modules that share their last part with one that is not adapted are named in full.
    """
    ends: dict[str, list[str]] = {}
    for name in base:
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            ends.setdefault(module.rpartition(".")[2], []).append(module)
    found: dict[str, None] = {}
    for module in modules:
        end = module.rpartition(".")[2]
        alone = all(other in modules for other in ends.get(end, [])) and not end.isdigit()
        found[end if alone else module] = None
    return sorted(found)


def _plain(read: Read) -> LoraFactors:
    if read.lora is None:
        raise ValueError(f"`{read.source}` has no factors")
    return read.lora


def _is_taken(job: Job) -> bool:
    return len(job.steps) == 1 and job.steps[0].op in ("passthrough", "take")


def _is_sum(steps: Sequence[Step]) -> bool:
    ops = [step.op for step in steps]
    return ops[:1] == ["task_arithmetic"] and set(ops[1:]) <= {"scale"}


def _as_saved(job: Job, dtype: str) -> Job:
    steps = job.steps or (Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]}),)
    return replace(job, name=f"{PREFIX}{job.name}", dtype=dtype, kind="merge", steps=steps)


def _kind(lora: LoraFactors | None) -> str:
    if lora is None:
        return "rows of another vocabulary"
    if not lora.a:
        return "trained tokens" if lora.rows else "a trained bias"
    if lora.magnitude or lora.diagonal:
        return "DoRA" if lora.magnitude else "KaSA"
    return "fused experts" if lora.stack else "a copy of the base's tensor"

"""Stages: plans inside a plan, whose results are inputs that are computed while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mergekit_lite.checkpoint import FLOAT_DTYPES, Computed, Header, TensorInfo
from mergekit_lite.errors import MergekitLiteError, Problem, RecipeError
from mergekit_lite.ops import registry
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.questions import questions_of
from mergekit_lite.plan.row_memory import made_bytes, read_bytes_of
from mergekit_lite.plan.types import Input, Job, Plan
from mergekit_lite.recipe.schema import Recipe, Stage
from mergekit_lite.recipe.stages import SIGN
from mergekit_lite.sources import Model

FOR_MEMORY = "computing it while it is read does not fit into the memory that is allowed"
"""Why a stage is written that would stream through with more memory."""
KEPT = "keep: true"
"""Why a stage is written that the recipe wants to keep."""

Prepare = Callable[[Recipe, "Stages"], tuple[Plan, dict[str, Model]]]


@dataclass
class Stages:
    """The stages of a recipe, each planned when it is first asked for.

    Args:
        recipe: that defines them.
        prepare: plans a recipe whose models may be stages.
    """

    recipe: Recipe
    prepare: Prepare
    _found: dict[str, Model | MergekitLiteError] = field(default_factory=dict)

    def model(self, reference: str) -> Model:
        """Return the result of a stage as a model.

        Raises:
            RecipeError, DataError, SourceError: the stage, or one that it uses, cannot be planned.
        """
        name = reference.removeprefix(SIGN)
        if name not in self._found:
            try:
                self._found[name] = self._planned(name)
            except MergekitLiteError as error:
                self._found[name] = type(error)([_of_stage(p, name) for p in error.problems])
        found = self._found[name]
        if isinstance(found, MergekitLiteError):
            raise found
        return found

    def _planned(self, name: str) -> Model:
        recipe = self.recipe.stages.get(name)
        if recipe is None:
            raise RecipeError(f"there is no stage `{name}`", hint="define it under `stages`")
        plan, parts = self.prepare(recipe, self)
        if plan.adapter:
            raise RecipeError(
                "its result is an adapter, and a stage gives a model",
                recipe.at("output"),
                "leave out `lora` under the stage's `output`",
            )
        if plan.tokenizer:
            raise RecipeError(
                "its result has another vocabulary than its base, and a stage has no tokenizer",
                recipe.at("vocab"),
                "change the vocabulary in the recipe itself, or merge this stage by itself first",
            )
        return as_model(name, plan, parts, named=recipe.named)

    def add(self, models: Mapping[str, Model]) -> None:
        """Take stages that have been planned before, those first that others use."""
        for model in models.values():
            if model.plan is not None:
                self.add(model.parts)
                self._found.setdefault(model.stage, model)

    def plans(self) -> dict[str, Plan]:
        """Return the plans of all stages that were asked for, those first that others use."""
        return {
            name: model.plan
            for name, model in self._found.items()
            if isinstance(model, Model) and model.plan is not None
        }


def is_stage(reference: str) -> bool:
    """Return whether a reference names a stage."""
    return reference.startswith(SIGN)


def _of_stage(problem: Problem, name: str) -> Problem:
    return replace(problem, what=f"stage `{name}`: {problem.what}")


def as_model(name: str, plan: Plan, parts: Mapping[str, Model], *, named: bool) -> Model:
    """Return a stage's result as a model that is on no disk.

    Args:
        name: of the stage.
        plan: what it does.
        parts: its models.
        named: its recipe names a dtype, to which the results are rounded; else they are handed on
            in fp32 and count as tensors of the dtypes that its base has.
    """
    base = parts["base"]
    stored = base.header.tensors
    tensors = {}
    for job in plan.jobs:
        dtype = job.dtype
        if not named and dtype in FLOAT_DTYPES:
            dtype = stored[job.name].dtype if job.name in stored else _usual(stored)
        tensors[job.name] = TensorInfo(job.name, dtype, job.shape, "", 0, None, _computed(job))
    return replace(
        base,
        reference=f"{SIGN}{name}",
        header=Header(tensors, {}, {}),
        config=_config(base, plan),
        quantization="",
        stage=name,
        plan=plan,
        parts=dict(parts),
    )


def _usual(stored: Mapping[str, TensorInfo]) -> str:
    """Return the float dtype that most entries of a model have."""
    entries: dict[str, int] = {}
    for info in stored.values():
        if info.dtype in FLOAT_DTYPES:
            entries[info.dtype] = entries.get(info.dtype, 0) + info.size
    return max(entries, key=lambda dtype: (entries[dtype], dtype), default="F32")


def _computed(job: Job) -> Computed | None:
    if job.dtype not in FLOAT_DTYPES:
        return Computed(job.dtype, job.reads[0].nbytes, 0)
    specs = registry()
    return Computed(job.dtype, read_bytes_of(job, specs), made_bytes(job, specs))


def _config(base: Model, plan: Plan) -> dict[str, object] | None:
    if base.config is None:
        return None
    kept = {key: value for key, value in base.config.items() if key not in plan.config_without}
    return {**kept, **plan.config}


def written_first(plan: Plan, stages: Mapping[str, Plan], recipe: Recipe) -> dict[str, str]:
    """Return which stages must be written before they are used, and why.

    Args:
        plan: that uses them.
        stages: all stages by name, those first that others use.
        recipe: of the plan.
    """
    whole = {
        name for user in (plan, *stages.values()) if questions_of(user) for name in _used_by(user)
    }
    reasons = {}
    for name, stage in stages.items():
        asked: Stage | None = recipe.stages.get(name)
        if asked is not None and asked.keep:
            reasons[name] = KEPT
        elif questions_of(stage):
            reasons[name] = "it asks for statistics of the whole model"
        elif name in whole:
            reasons[name] = "statistics of the whole model are asked of its result"
    return reasons


def within_memory(
    plan: Plan, *, threads: int | None, max_memory: int | None, device: str = "cpu"
) -> Plan:
    """Return a plan that has its stages written first, where that alone lets it fit into memory."""
    left = [name for name in plan.stages if name not in plan.written]
    if max_memory is None or not left:
        return plan

    def fits(candidate: Plan) -> bool:
        cost = estimate(
            candidate, threads=threads, max_memory=max_memory, refuse=False, device=device
        )
        return cost.least_memory <= max_memory

    if fits(plan):
        return plan
    reasons = {name: plan.written.get(name, FOR_MEMORY) for name in plan.stages}
    each = [replace(stage, written=reasons) for stage in plan.stages.values()]
    written = replace(plan, written=reasons)
    return written if all(map(fits, (written, *each))) else plan


def _used_by(plan: Plan) -> Iterator[str]:
    return (source.stage for source in plan.inputs.values() if source.stage)


def leaf_models(models: Mapping[str, Model]) -> dict[str, Model]:
    """Return all models that are on a disk, by the names of `Plan.leaves`."""
    found: dict[str, Model] = {}
    for name, model in models.items():
        if model.plan is None:
            found[name] = model
            continue
        for part, leaf in leaf_models(model.parts).items():
            found[part if "/" in part else f"{model.stage}/{part}"] = leaf
    return found


def with_results(models: Mapping[str, Model], results: Mapping[str, Model]) -> dict[str, Model]:
    """Return models in which the results of stages that have been written stand for them."""
    return {
        name: model
        if model.plan is None
        else results.get(model.stage) or replace(model, parts=with_results(model.parts, results))
        for name, model in models.items()
    }


def reopened(
    plan: Plan, stages: Mapping[str, Plan], open_leaf: Callable[[Input], Model]
) -> dict[str, Model]:
    """Return the models of a plan that came from elsewhere, those of its stages included."""
    return {
        name: as_model(
            source.stage,
            stages[source.stage],
            reopened(stages[source.stage], stages, open_leaf),
            named=True,
        )
        if source.stage
        else open_leaf(source)
        for name, source in plan.inputs.items()
    }


def size_of(plan: Plan) -> int:
    """Return the bytes of a stage's result on disk."""
    return sum(shard.nbytes for shard in plan.shards)

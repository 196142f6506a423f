"""From a recipe and the headers of its models to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import role_of
from mergekit_lite.checkpoint.index import part_of
from mergekit_lite.errors import DataError, MergekitLiteError, Problem, RecipeError, SourceError
from mergekit_lite.plan.adapter_config import WEIGHT_FILE
from mergekit_lite.plan.adapter_rows import AdapterRows
from mergekit_lite.plan.assembly import assemble, set_layers_aside
from mergekit_lite.plan.check import check_base, check_expert, check_quantised, check_used
from mergekit_lite.plan.classes import class_changes
from mergekit_lite.plan.configs import ties_head
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame
from mergekit_lite.plan.heads import TIED, settle_head
from mergekit_lite.plan.inputs import View, check_repeats, placed, plan_inputs, views
from mergekit_lite.plan.layout import (
    config_changes,
    config_without,
    lay_out,
    main_dtype,
    one_file,
    sign,
)
from mergekit_lite.plan.naming import name_experts
from mergekit_lite.plan.ported import check_ported
from mergekit_lite.plan.quantised import KEY, quantised
from mergekit_lite.plan.rows import Rows
from mergekit_lite.plan.rules import check_rules
from mergekit_lite.plan.stages import Stages, is_stage, written_first
from mergekit_lite.plan.types import Job, Plan
from mergekit_lite.plan.vocabulary import Vocabulary, settle
from mergekit_lite.recipe.schema import Recipe, Routers
from mergekit_lite.sources import Model, as_stored, resolve
from mergekit_lite.sources.resolve import Wanted

if TYPE_CHECKING:
    from mergekit_lite.moe.planned import Routed


def models(recipe: Recipe) -> dict[str, Model]:
    """Resolve the base and every expert of a recipe; only headers are read.

    Returns:
        `base` and the experts' names -> models.

    Raises:
        SourceError, DataError, RecipeError: all models that cannot be had, in one error.
    """
    found, errors = _resolve_all(recipe, Stages(recipe, _prepare))
    if errors:
        raise _joined(errors)
    return found


def build(recipe: Recipe, models: Mapping[str, Model] | None = None) -> Plan:
    """Decide every output tensor, from the recipe and the headers of its models alone.

    Args:
        recipe: a checked recipe.
        models: its resolved models, where the caller has them; see `models`.

    Raises:
        RecipeError: all problems that names, shapes, dtypes and configs show.
        SourceError: a model is missing.
        DataError: a header is damaged.
    """
    return prepare(recipe, models)[0]


def prepare(
    recipe: Recipe, models: Mapping[str, Model] | None = None
) -> tuple[Plan, dict[str, Model]]:
    """Return the plan of a recipe and its models, resolved once; see `build` and `models`.

    Args:
        recipe: a checked recipe.
        models: its resolved models, where the caller has them.

    Raises:
        RecipeError, SourceError, DataError: all problems of the models and of the plan, in one.
    """
    stages = Stages(recipe, _prepare)
    if models is None:
        plan, found = _prepare(recipe, stages)
    else:
        plan, found = _build(recipe, models, []), dict(models)
        stages.add(found)
    plans = stages.plans()
    if not plans:
        return plan, found
    notes = [f"stage `{name}`: {text}" for name, inner in plans.items() for text in inner.warnings]
    written = written_first(plan, plans, recipe)
    warnings = tuple(dict.fromkeys([*plan.warnings, *notes]))
    return replace(plan, stages=plans, written=written, warnings=warnings), found


def _prepare(recipe: Recipe, stages: Stages) -> tuple[Plan, dict[str, Model]]:
    found, errors = _resolve_all(recipe, stages)
    return _build(recipe, found, errors), found


def with_models(error: RecipeError, draft: Recipe | None) -> MergekitLiteError:
    """Return an error of a recipe's text with all that its models have wrong with them.

    Args:
        error: what `load` raised.
        draft: what the text says about its models. Tensors that only rows read are left out, for
            the rows cannot be told.
    """
    if draft is None:
        return error
    found, errors = _resolve_all(draft, Stages(draft, _prepare))
    findings = Findings()
    _check_inputs(draft, found, findings)
    every = [error, *errors, RecipeError(findings.all_problems())]
    joined = _joined(every)
    return joined if isinstance(joined, DataError) else RecipeError(joined.problems)


def _build(
    recipe: Recipe, models: Mapping[str, Model], errors: Sequence[MergekitLiteError]
) -> Plan:
    """Build a plan; `errors` are those of models that could not be had."""
    findings = Findings(warnings=list(recipe.notes))
    jobs: list[Job] = []
    frame, config, adapter = Frame((), 0), dict[str, Any](), dict[str, Any]()
    vocabulary, untouched = Vocabulary(), dict[str, Any]()
    routed: Routed | None = None
    found = _check_inputs(recipe, models, findings)
    if found:
        check_ported(recipe, found, findings)
        base = found["base"]
        stack = base.stack if recipe.slices else None
        if not base.settled and (stack is not None or not recipe.slices):
            vocabulary = settle(recipe, found, findings)
            frame, config = assemble(recipe, found, stack, findings)
            routed = _routed(recipe, found, findings)
            jobs, untouched = _rows(recipe, found, frame, findings, routed)
        if not errors and not findings.all_problems():
            _check_output(recipe, found["base"], jobs, findings)
        if recipe.output.lora is not None:
            rows = AdapterRows(recipe, found, findings)
            jobs, adapter = rows.rows(jobs), rows.config()
            vocabulary.row_maps.update(rows.row_maps)
            untouched = {}  # their entries are those of small spaces
        jobs, config = _quantised(recipe, found["base"].model, jobs, config, findings)
    if problems := findings.all_problems():
        errors = [*errors, RecipeError(problems)]
    if errors:
        raise _joined(errors)
    return _plan(
        recipe, found, jobs, frame, config, vocabulary, adapter, untouched, findings, routed
    )


def _quantised(
    recipe: Recipe,
    base: Model,
    jobs: list[Job],
    config: Mapping[str, Any],
    findings: Findings,
) -> tuple[list[Job], dict[str, Any]]:
    """Return the rows and the config's changes of an output that is quantised, if it is."""
    if recipe.output.quantize is None or not jobs:
        return jobs, dict(config)
    made = quantised(recipe, recipe.output.quantize, base, jobs, findings)
    return made.jobs, {**config, KEY: made.config}


def _resolve_all(
    recipe: Recipe, stages: Stages
) -> tuple[dict[str, Model], list[MergekitLiteError]]:
    wanted: dict[str, tuple[str, Wanted, str]] = {}
    if recipe.base:  # a draft may have none
        wanted["base"] = (recipe.base, "checkpoint", recipe.at("base"))
    for name, expert in recipe.experts.items():
        kind: Wanted = "expert" if expert.lora is None else "adapter"
        wanted[name] = (expert.reference, kind, recipe.at("experts", name, expert.key))
    found: dict[str, Model] = {}
    known: dict[tuple[str, Wanted], Model] = {}
    errors: list[MergekitLiteError] = []
    for name, (reference, kind, where) in wanted.items():
        try:
            if is_stage(reference):
                found[name] = stages.model(reference)
                continue
            if (reference, kind) not in known:
                model = resolve(reference, relative_to=recipe.folder, kind=kind)
                known[reference, kind] = as_stored(model) if _moves_codes(recipe) else model
            found[name] = known[reference, kind]
        except (RecipeError, DataError, SourceError) as error:
            errors.append(type(error)(placed(error.problems, where)))
    return found, errors


def _moves_codes(recipe: Recipe) -> bool:
    """Return whether quantised weights are moved as they are: experts are only left out."""
    return recipe.moe is not None and recipe.moe.prune is not None


def _joined(errors: Sequence[MergekitLiteError]) -> MergekitLiteError:
    """Return one error with all problems; damaged bytes outrank missing ones, those a misfit."""
    kinds = (DataError, SourceError, RecipeError)
    kind = next(kind for kind in kinds if any(isinstance(error, kind) for error in errors))
    problems: dict[Problem, None] = {}
    for error in errors:
        problems |= dict.fromkeys(error.problems)
    return kind(list(problems))


def _check_inputs(
    recipe: Recipe, models: Mapping[str, Model], findings: Findings
) -> dict[str, View]:
    """Note what headers and configs alone tell; return the views, none where there is no base."""
    for name, model in models.items():
        check_quantised(recipe, name, model, findings)
    if "base" not in models:
        return {}
    found = views(recipe, models)
    base = found["base"]
    check_base(recipe, base, findings)
    base.settled = bool(base.model.unreadable) or not base.tensors
    if not base.settled:
        name_experts(recipe, found, findings)
        if recipe.moe is not None:
            from mergekit_lite.moe.planned import unfuse

            unfuse(recipe, found, findings)
        base.changes.update(settle_head(recipe, found, findings))
    if recipe.slices and not base.settled:
        base.stack = set_layers_aside(recipe, found, findings)
    for name, view in found.items():
        if name != "base" and not base.settled:
            check_expert(recipe, view, base, findings)
    check_repeats(recipe, found, findings)
    return found


def _routed(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Routed | None:
    if recipe.moe is None and not isinstance(recipe.routers, Routers):
        return None
    from mergekit_lite.moe.planned import settle as settle_routed

    return settle_routed(recipe, found, findings)


def _rows(
    recipe: Recipe,
    found: Mapping[str, View],
    frame: Frame,
    findings: Findings,
    routed: Routed | None,
) -> tuple[list[Job], dict[str, tuple[tuple[int, int], ...]]]:
    """Return all rows, and what no row brings to whole-model statistics."""
    rows = Rows(recipe, found, frame.layers, findings)
    if routed is None and (recipe.moe is not None or isinstance(recipe.routers, Routers)):
        return [], {}
    if routed is None:
        jobs = [job for target in frame.targets if (job := rows.row(target)) is not None]
    else:
        from mergekit_lite.moe.planned import rows_of

        jobs = rows_of(routed, rows, recipe, found, frame, findings)
    check_rules(rows.rules, frame.layers, findings, [target.name for target in frame.targets])
    check_used(recipe, found, findings)
    rows.steps.statistics.check_used()
    found["base"].changes.update(class_changes(rows.heads, found, recipe, findings))
    return jobs, rows.steps.untouched.table()


def _check_output(recipe: Recipe, base: View, jobs: list[Job], findings: Findings) -> None:
    if not jobs:
        findings.problem(
            "every tensor is dropped, nothing is left to write",
            recipe.at("rules"),
            "narrow the rules that say `drop`",
        )
    written = {job.name for job in jobs}
    dropped = [name for name in base.base if name not in written and role_of(name) == "head"]
    ties = base.changes.get(TIED, ties_head(base.model.config))
    if dropped and ties is False:
        findings.warn(
            f"`{dropped[0]}` is dropped, but the config says that the head is not tied to the"
            " embedding: loaders will make up a head",
            recipe.at("rules"),
        )


def _plan(
    recipe: Recipe,
    found: Mapping[str, View],
    jobs: list[Job],
    frame: Frame,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    adapter: Mapping[str, Any],
    untouched: Mapping[str, tuple[tuple[int, int], ...]],
    findings: Findings,
    routed: Routed | None,
) -> Plan:
    dtype = main_dtype(jobs)
    base = found["base"].model
    known = base.config
    moe, gone = dict[str, Any](), tuple[str, ...]()
    if routed is not None:
        from mergekit_lite.moe.planned import facts_of, settings_of

        settings, gone = settings_of(routed)
        config, moe = {**config, **settings}, facts_of(routed, jobs)
    config = {**config, **found["base"].changes}
    as_it_is = _moves_codes(recipe) and recipe.output.dtype == "base" and not base.plan
    changes = {
        **(base.plan.config if base.plan else {}),
        **config,
        **({} if as_it_is else config_changes(known and {**known, **config}, dtype)),
    }
    parts = list(dict.fromkeys(map(part_of, base.header.files))) or ["model"]
    if adapter or not any("/" in part for part in parts):
        parts = parts[:1]
    size = one_file(jobs) if adapter else recipe.output.shard_size
    placed_jobs, shards = lay_out(jobs, size, parts)
    if adapter:
        shards = tuple(replace(shard, file=WEIGHT_FILE) for shard in shards)
    return sign(
        Plan(
            inputs=plan_inputs(recipe, found),
            jobs=placed_jobs,
            shards=shards,
            seed=recipe.seed,
            layers=frame.layers,
            dtype=dtype,
            warnings=findings.all_warnings(),
            recipe=recipe.plain(),
            # Parts that are given whole go first, for single entries are laid over them.
            config=dict(sorted(changes.items(), key=lambda item: not isinstance(item[1], Mapping))),
            config_without=tuple(
                key
                for key in (
                    *(() if as_it_is else config_without(known)),
                    *(base.plan.config_without if base.plan else ()),
                    *gone,
                )
                if key != KEY or recipe.output.quantize is None
            ),
            compat=recipe.compat,
            folder=str(recipe.folder.absolute()),
            layer_map=frame.layer_map,
            row_maps=vocabulary.row_maps,
            tokenizer=vocabulary.tokenizer,
            untouched=untouched,
            adapter=adapter,
            moe=moe,
        )
    )

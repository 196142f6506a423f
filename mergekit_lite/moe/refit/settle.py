"""Which routers of a merge are fitted, and to which of the experts'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_lite.moe.fewer.stored import RoutedModule, modules_of
from mergekit_lite.moe.texts import check_file
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.layout import output_dtype
from mergekit_lite.plan.made import made_job
from mergekit_lite.plan.names import few
from mergekit_lite.plan.questions import asked_by, may_ask
from mergekit_lite.plan.types import Job
from mergekit_lite.recipe.schema import BASE, Recipe, Routers

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows


@dataclass(frozen=True)
class Refit:
    """Routers that are fitted before the rows run.

    Attributes:
        asked: what the recipe says.
        rows: name -> layer of each router.
        stored: name of a router, or of its bias of choice, -> expert -> its name there.
    """

    asked: Routers
    rows: Mapping[str, int]
    stored: Mapping[str, Mapping[str, str]]

    def plain(self) -> dict[str, Any]:
        """Return what a run needs to fit them, as plain data."""
        return {
            "routers": {
                **self.asked.model_dump(mode="json"),
                "rows": dict(self.rows),
                "stored": {name: dict(found) for name, found in self.stored.items()},
            }
        }


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Refit | None:
    """Return which routers a recipe wants fitted; None with problems noted."""
    base, asked = found[BASE], recipe.routers
    if not isinstance(asked, Routers) or base.settled:
        return None
    before, where = len(findings.problems), recipe.at("routers")
    rows, corrections = {}, []
    for own in modules_of(base.tensors, base.model.config).values():
        matrix = _matrix(own, base)
        if matrix is None or own.layer is None:
            continue
        if own.drafts:
            continue  # no text passes layers that draft tokens ahead
        rows[matrix] = own.layer
        corrections += [name for name in own.routers if name.endswith("e_score_correction_bias")]
        if odd := [n for n in own.routers if n != matrix and n not in corrections]:
            findings.problem_with(
                f"`{odd[0]}`",
                "routers have a bias, which is not fitted",
                where,
                "write `routers: base`, or `routers: merge`",
            )
    if not rows:
        what = "the base has no routers that could be fitted"
        findings.problem(what, where, "name a routed model as `base`, or leave `routers` out")
    _check_experts(recipe, asked, found, findings)
    stored = {
        name: {expert: _stored(found[expert], name) for expert in asked.data if expert in found}
        for name in (*rows, *corrections)
    }
    _check_stored(base, stored, found, findings, where)
    return None if len(findings.problems) > before else Refit(asked, rows, stored)


def jobs(refit: Refit, rows: Rows, recipe: Recipe, frame: Frame, findings: Findings) -> list[Job]:
    """Return every row of the result; routers that no rule names are made before the others run."""
    found = list(_jobs(refit, rows, recipe, frame))
    asking = [
        job.name
        for job in found
        if may_ask(step.op for step in job.steps) and any(True for _ in asked_by(job))
    ]
    if asking:
        findings.problem(
            "routers are fitted while the merged model is not there yet, and its rows ask for"
            f" statistics of the whole model: {few(asking)}",
            recipe.at("routers"),
            "merge without `routers` first, then name the result as `base`, the same experts, and"
            " `steps: [{take: {source: base}}]` with `routers`",
        )
    return found


def _jobs(refit: Refit, rows: Rows, recipe: Recipe, frame: Frame) -> Iterator[Job]:
    rule = f"{recipe.at('routers')} fitted by `{refit.asked.method}`"
    for target in frame.targets:
        decision = rows.rules.decide(target.name, target.layer, target.role, target.slice)
        fitted = target.name in refit.rows and decision.action == "steps"
        if fitted and not rows.names_router(decision):
            dtype = output_dtype(target.info.dtype, recipe.output.dtype)
            yield made_job(target.name, dtype, target.info.shape, target.layer, rule)
        elif (job := rows.row(target)) is not None:
            yield job


def _matrix(own: RoutedModule, base: View) -> str | None:
    """Return the name of a router's matrix."""
    shapes = {name: base.tensors[name].shape for name in own.routers}
    found = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == own.experts]
    return found[0] if found and own.experts > 1 else None


def _check_experts(
    recipe: Recipe, asked: Routers, found: Mapping[str, View], findings: Findings
) -> None:
    for name, file in asked.data.items():
        where = recipe.at("routers", "data", name)
        check_file(recipe, file, f"for expert `{name}`", findings, where)
        view = found.get(name)
        if view is None:
            continue
        view.used += 1
        if view.model.adapter is not None or view.model.plan is not None:
            kind = "an adapter" if view.model.adapter is not None else "a stage"
            findings.problem(
                f"expert `{name}` is {kind}, whose router cannot be read by itself",
                where,
                "write it as a model first, and name its folder",
            )


def _stored(view: View, name: str) -> str:
    info = view.tensors.get(name)
    return info.name if info is not None else ""


def _check_stored(
    base: View,
    stored: Mapping[str, Mapping[str, str]],
    found: Mapping[str, View],
    findings: Findings,
    where: str,
) -> None:
    for name, by_expert in stored.items():
        for expert in by_expert:
            view = found[expert]
            if view.settled or view.shape(name) in (None, base.tensors[name].shape):
                continue
            findings.problem_with(
                f"`{name}` of `{expert}`",
                "routers of experts are of another shape than the base's",
                where,
                "merge models with as many experts",
            )

"""Why a tensor of the output is what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.checkpoint import LoraFactors, TensorInfo, layer_of, role_of
from mergekit_lite.errors import RecipeError, nearest
from mergekit_lite.plan.build import models as resolve_models
from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.rules import Rules, describe, describe_match
from mergekit_lite.plan.types import GATE, Block, Job, Plan, Read, Step
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.sources import Model


def explain(
    plan: Plan, recipe: Recipe, tensor: str, models: Mapping[str, Model] | None = None
) -> dict[str, Any]:
    """Return, as plain data, which rule won for a tensor and what is read, done and written.

    Args:
        plan: made from `recipe`.
        recipe: whose rules decided.
        tensor: name of a tensor of the output, or of one that a rule drops.
        models: the recipe's models, where the caller has them.

    Raises:
        RecipeError: there is no such tensor; the message offers the nearest name.
    """
    models = models or resolve_models(recipe)
    known = {**models["base"].header.tensors, **{job.name: job for job in plan.jobs}}
    if tensor not in known:
        raise RecipeError(
            f"there is no tensor `{tensor}`",
            hint=nearest(tensor, known) or "`mergekit-lite inspect` lists the names of a model",
        )
    rules = Rules(recipe)
    layer, role = layer_of(tensor), role_of(tensor)
    sliced = next((row for row in plan.layer_map if _stands_in(row, tensor)), None)
    decision = rules.decide(tensor, layer, role, sliced["slice"] if sliced else None)
    matched = [
        {
            "where": recipe.rules[index].where or recipe.at("rules", index),
            "match": describe_match(recipe.rules[index].match),
            "does": describe(recipe.rules[index]),
            "won": index == decision.winner,
        }
        for index in decision.matched
    ]
    found: dict[str, Any] = {
        "tensor": tensor,
        "layer": layer,
        "layers": plan.layers,
        "role": role,
        "decision": {"where": decision.where, "why": decision.why},
        "rules": matched,
    }
    job = next((job for job in plan.jobs if job.name == tensor), None)
    if plan.moe and job is not None and tensor not in models["base"].header.tensors:
        # No rule speaks of what a routed model has and its base has not.
        where, _, why = job.rule.partition(" ")
        found["decision"] = {"where": where, "why": why}
    if job is None:
        return {**found, "kind": "drop", "reads": [], "steps": [], "writes": None}
    return {**found, **_row(plan, job, models)}


def _stands_in(row: Mapping[str, Any], tensor: str) -> bool:
    """Return whether a tensor belongs to a layer that slices have put there."""
    return tensor.startswith(f"{row['stack']}.{row['layer']}.")


def _row(plan: Plan, job: Job, models: Mapping[str, Model]) -> dict[str, Any]:
    reads = [("base", job.base)] if job.base is not None else []
    reads += [("input", read) for read in job.reads]
    return {
        "kind": job.kind,
        "why": job.rule,
        "reads": [place for part, read in reads for place in _places(read, part, models)],
        "steps": [
            {"op": step.op, **({"expert": step.expert} if step.expert else {}), **_named(step, job)}
            for step in job.steps
        ],
        "writes": {
            "file": plan.shards[job.shard].file,
            "offset": job.start,
            "bytes": job_bytes(job),
            "dtype": job.dtype,
            "shape": list(job.shape),
        },
    }


def _named(step: Step, job: Job) -> dict[str, Any]:
    """Return a step's parameters, with weights by the name of what they weigh."""
    params = dict(step.params)
    weights = params.pop("weights", None)
    named: dict[str, Any] = {"params": params}
    if weights is not None:
        named["weights"] = dict(zip(_labels(job.reads), weights, strict=True))
    return named


def _labels(reads: Sequence[Read]) -> list[str]:
    """Return what tells inputs apart: their sources, or else their tensors, or else numbers."""
    numbers = [f"input {number}" for number in range(1, len(reads) + 1)]
    for labels in ([read.source for read in reads], [read.name for read in reads]):
        if len(set(labels)) == len(reads):
            return labels
    return numbers


def _lora_parts(lora: LoraFactors) -> dict[str, str]:
    """Return what each tensor of an adapter's delta is, by name."""
    scale = f"scale {lora.scale:g}"
    if lora.rows:
        return {lora.b: f"{len(lora.rows)} rows in place of the base's"}
    if lora.packed:
        return {name: lora.kind for name in lora.parts}
    if lora.shares:
        return {
            name: f"lora {letter} of expert {share.expert}, scale {share.scale:g}"
            for share in lora.shares
            for letter, name in (("A", share.a), ("B", share.b))
        }
    parts = {lora.a: f"lora A, {scale}"} if lora.a else {}
    parts[lora.b] = f"lora B, {scale}" if lora.a else f"lora bias, {scale}"
    parts |= {lora.diagonal: "KaSA diagonal"} if lora.diagonal else {}
    parts |= {lora.magnitude: "DoRA magnitude"} if lora.magnitude else {}
    return parts | ({lora.under: "the adapter's copy of the base"} if lora.under else {})


def _places(read: Read, part: str, models: Mapping[str, Model]) -> list[dict[str, Any]]:
    if read.blocks:
        return [place for block in read.blocks for place in _window(block, part, models)]
    if read.source == GATE:
        return [{"source": GATE, "part": part, "tensor": read.name, "bytes": read.nbytes}]
    if read.zero:
        return [{"source": read.source, "part": part, "zero": True}]
    if read.gather is not None:
        gathered = f"{part}, rows gathered" if part != "input" else "rows gathered"
        return [place for of in read.gather.parts for place in _places(of, gathered, models)]
    model = models[read.source]
    if model.stage:
        return [
            {
                "source": read.source,
                "part": part,
                "stage": model.stage,
                "tensor": info.name,
                "dtype": info.loaded,
                "shape": list(info.shape),
                "bytes": info.nbytes,
            }
            for _, info in _stored(read, part, model)
        ]
    folder = model.root if model.root.is_dir() else model.root.parent
    return [
        {
            "source": read.source,
            "part": label,
            "tensor": info.name,
            "file": str(folder / info.file),
            "offset": info.start,
            "bytes": info.nbytes,
            "dtype": info.dtype,
            "shape": list(info.shape),
        }
        for label, info in _stored(read, part, model)
    ]


def _window(block: Block, part: str, models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """Return where the matrix lies that a window shows; nothing for zeros."""
    if block.read.zero:
        return []
    rows, columns = block.shape
    whole = block.first == (0, 0) and block.shape == block.stored
    at = f" from row {block.first[0]}, column {block.first[1]}" if any(block.first) else ""
    label = "whole" if whole else f"{rows}x{columns}{at}"
    times = "" if block.scale == 1.0 else f", times {block.scale:g}"
    order = f", {block.order.axis} in the order `{block.order.name}`" if block.order else ""
    return _places(block.read, f"{part}, {label}{times}{order}", models)


def _stored(read: Read, part: str, model: Model) -> list[tuple[str, TensorInfo]]:
    """Return what is stored for an input, each with what it is to it."""
    tensors = model.header.tensors
    if read.lora is not None:
        parts = _lora_parts(read.lora)
        return [(label, tensors[name]) for name, label in parts.items()]
    if read.pieces:
        counts = Counter(piece.name for piece in read.pieces)
        how = ", turned" if read.turn is not None else ""
        parts = {n: f"{part}, in {plural(count, 'piece')}{how}" for n, count in counts.items()}
        return [(label, tensors[name]) for name, label in parts.items()]
    info = tensors[read.name]
    if info.coded is None:
        return [(part, info)]
    return [
        ("codes" if stored is info.coded.codes else "for the codes", stored)
        for stored in info.coded.parts
    ]


def explain_text(explanation: Mapping[str, Any]) -> str:
    """Return what `explain` found, for a person to read."""
    layer = explanation["layer"]
    depth = f"layer {layer} of {explanation['layers']}" if layer is not None else "no layer"
    lines = [f"{explanation['tensor']}  ({explanation['role']}, {depth})"]
    decision = explanation["decision"]
    lines.append(f"decided by  {decision['where']}  {decision['why']}")
    for rule in explanation["rules"]:
        won = "won" if rule["won"] else "applied" if rule["does"].startswith("set ") else "lost"
        lines.append(f"  {won:8}{rule['where']}  {rule['does']} for {rule['match']}")
    if explanation["kind"] == "drop":
        return "\n".join([*lines, "writes      nothing: the tensor is dropped"])
    # The row's own reason begins with the decision, which stands above.
    decided = f"{decision['where']} {decision['why']}"
    why = explanation["why"].removeprefix(decided).removeprefix("; ")
    lines.append(f"kind        {explanation['kind']}" + (f": {why}" if why else ""))
    lines += [f"reads       {_read_text(read)}" for read in explanation["reads"]]
    lines += [f"does        {_step_text(step)}" for step in explanation["steps"]]
    writes = explanation["writes"]
    shape = "x".join(map(str, writes["shape"]))
    lines.append(
        f"writes      {writes['file']} at {writes['offset']}: {writes['dtype']} {shape},"
        f" {writes['bytes']} bytes"
    )
    return "\n".join(lines)


def _read_text(read: Mapping[str, Any]) -> str:
    if read.get("zero"):
        return f"{read['source']}: nothing, its delta is zero"
    if read["source"] == GATE:
        return f"gates: {read['tensor']}, made before the rows run, {read['bytes']} bytes"
    shape = "x".join(map(str, read["shape"]))
    part = "" if read["part"] == "input" else f" ({read['part']})"
    if "stage" in read:
        return (
            f"{read['source']}{part}: {read['tensor']}, computed by the stage `{read['stage']}`"
            f" from {read['bytes']} bytes: {read['dtype']} {shape}"
        )
    return (
        f"{read['source']}{part}: {read['tensor']}, {read['file']} at {read['offset']}:"
        f" {read['dtype']} {shape}, {read['bytes']} bytes"
    )


def _step_text(step: Mapping[str, Any]) -> str:
    params = ", ".join(f"{key} {value}" for key, value in step["params"].items())
    weights = ", ".join(f"{name} {weight:g}" for name, weight in step.get("weights", {}).items())
    of = f" of {step['expert']}" if "expert" in step else ""
    return f"{step['op']}{of}" + "".join(
        f"; {part}" for part in (params, f"weights {weights}" if weights else "") if part
    )

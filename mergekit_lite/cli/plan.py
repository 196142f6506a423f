"""`mergekit-lite plan`: show what a run would do and cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import bytes_text, note, print_json, seconds_text, table

if TYPE_CHECKING:
    from mergekit_lite.plan.estimate import Estimate
    from mergekit_lite.plan.types import Job, Plan


@click.command(short_help="Show what a run would do and cost; reads headers only.")
@parameters.recipe
@parameters.out("Output folder, to compare with free disk.")
@parameters.changes
@parameters.shard_size
@parameters.threads
@parameters.max_memory
@click.option("--expand", is_flag=True, help="Show each chain of ops in full, and every tensor.")
@click.option("--explain", metavar="TENSOR", help="Show which rule won for one tensor, and why.")
@parameters.as_json
def command(
    recipe: Path,
    out: Path | None,
    changes: tuple[str, ...],
    shard_size: str | None,
    threads: int | None,
    max_memory: int | None,
    expand: bool,
    explain: str | None,
    as_json: bool,
) -> None:
    """Show what a run of RECIPE would do and cost. Reads headers only, writes nothing.

    \b
    Examples:
      mergekit-lite plan recipe.yaml
      mergekit-lite plan recipe.yaml --explain model.layers.3.mlp.up_proj.weight
    """
    from mergekit_lite import api

    loaded = api.load(recipe, parameters.all_changes(changes, shard_size), models=True)
    ready = api.plan(loaded)
    if explain is not None:
        from mergekit_lite.plan import explain as room

        found = room.explain(ready, loaded, explain)
        if as_json:
            print_json(found)
        else:
            click.echo(room.explain_text(found))
        return
    show(ready, threads=threads, max_memory=max_memory, out=out, expand=expand, as_json=as_json)


def show(
    plan: Plan,
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    device: str = "cpu",
    out: Path | None = None,
    expand: bool = False,
    as_json: bool = False,
) -> None:
    """Print a plan with its cost; raises `ResourceError` after that where a run would."""
    from mergekit_lite.plan.estimate import estimate, require
    from mergekit_lite.plan.stages import within_memory

    plan = within_memory(plan, threads=threads, max_memory=max_memory, device=device)
    cost = estimate(
        plan, threads=threads, max_memory=max_memory, out=out, refuse=False, device=device
    )
    if as_json:
        print_json({**json.loads(plan.to_json()), "estimate": asdict(cost)})
    else:
        for warning in plan.warnings:
            note(f"warning: {warning}")
        parts = [inputs_text(plan), chains_text(plan, full=expand), cost_text(plan, cost)]
        if plan.layer_map:
            parts.insert(1, layers_text(plan))
        if plan.stages:
            parts.insert(1, stages_text(plan, full=expand))
        click.echo("\n\n".join(parts))
        if expand:
            click.echo(f"\n{rows_text(plan)}")
    require(cost, max_memory=max_memory, out=out)


def inputs_text(plan: Plan) -> str:
    """Return the table of inputs."""
    from mergekit_lite.plan.names import plural

    rows = [
        (
            name,
            source.reference,
            "stage" if source.stage else source.quantization or source.kind,
            source.revision[:12],
            plural(source.matched, "tensor"),
            "" if source.stage else bytes_text(sum(source.files.values())),
        )
        for name, source in {**plan.inputs, **plan.leaves}.items()
    ]
    return table(("input", "model", "kind", "revision", "matched", "size"), rows, "llllrr")


def stages_text(plan: Plan, *, full: bool) -> str:
    """Return the table of stages: what each does, and whether it is written on the way."""
    from mergekit_lite.plan.stages import size_of

    rows = []
    for name, stage in plan.stages.items():
        how = "streams through, no disk"
        if name in plan.written:
            how = f"written first, {bytes_text(size_of(stage))} of disk: {plan.written[name]}"
        chains = Counter(chain_text(job, full=full) for job in stage.jobs)
        rows += [
            (name if first else "", how if first else "", f"{count}", chain)
            for first, (chain, count) in zip(
                [True] + [False] * len(chains), chains.most_common(), strict=False
            )
        ]
    return table(("stage", "how", "tensors", "what is done"), rows, "llrl")


def layers_text(plan: Plan) -> str:
    """Return the table of runs of layers of an assembled model, and where each is from."""
    runs: list[list[Mapping[str, Any]]] = []
    for row in plan.layer_map:
        before = {n: own + 1 for n, own in runs[-1][-1]["sources"].items()} if runs else {}
        if runs and row["sources"] == before and row["slice"] == runs[-1][0]["slice"]:
            runs[-1].append(row)
        else:
            runs.append([row])

    def span(first: int, count: int) -> str:
        return f"{first}" if count == 1 else f"{first}-{first + count - 1}"

    rows = [
        (
            span(run[0]["layer"], len(run)),
            ", ".join(f"{n} {span(own, len(run))}" for n, own in run[0]["sources"].items()),
        )
        for run in runs
    ]
    return table(("layers", "from"), rows, "ll")


def chains_text(plan: Plan, *, full: bool) -> str:
    """Return what is done, and to how many tensors: the ops, or with `full` their parameters."""
    counts = Counter(chain_text(job, full=full) for job in plan.jobs)
    rows = [(f"{count}", chain) for chain, count in counts.most_common()]
    return table(("tensors", "what is done"), rows, "rl")


def chain_text(job: Job, *, full: bool = False) -> str:
    """Return the chain of one row on a line; transforms that all experts share are named once."""
    from mergekit_lite.plan.types import GATE

    if job.kind == "copy":
        from mergekit_lite.plan.runs import runs_of

        inputs = sorted({run.source for run in runs_of(job.reads[0], prod(job.shape))})
        return f"copy from {' and '.join(inputs)}".replace(GATE, "the gates")
    sources = [read.source for read in job.reads]
    shared: dict[str, list[str]] = {}
    for step in job.steps:
        text = _step(step.op, step.params, sources) if full else step.op
        shared.setdefault(text, []).extend([step.expert] if step.expert else [])
    everyone = [read.source for read in job.reads if not read.zero]
    parts = [
        text if not experts or sorted(set(experts)) == sorted(everyone)
        else f"{text} of {', '.join(dict.fromkeys(experts))}"
        for text, experts in shared.items()
    ]  # fmt: skip
    if not any(sources):
        return "zeros"
    return f"{' > '.join(parts)}  of {', '.join(sources)}".replace(GATE, "the gates")


def _step(op: str, params: Mapping[str, Any], sources: Sequence[str]) -> str:
    texts = []
    for name, value in params.items():
        if name == "weights" and len(value) == len(sources):
            pairs = zip(sources, value, strict=True)
            texts.append("weights " + " ".join(f"{source}:{weight:g}" for source, weight in pairs))
        else:
            texts.append(f"{name}={value}")
    return f"{op}({', '.join(texts)})" if texts else op


def cost_text(plan: Plan, cost: Estimate) -> str:
    """Return the output and the cost of a run, a line each."""
    from mergekit_lite.export.labels import stored_dtypes
    from mergekit_lite.plan.names import plural

    merged = sum(1 for job in plan.jobs if job.kind == "merge")
    tensors, files = plural(len(plan.jobs), "tensor"), plural(len(plan.shards), "file")
    dtypes = " and ".join(stored_dtypes(plan))
    free = f", {bytes_text(cost.disk_free)} free" if cost.disk_free is not None else ""
    lines = [
        ("output", f"{tensors} ({merged} computed), {dtypes}, {files}"),
        *(("sweep", text) for text in cost.sweeps),
        *([("gates", cost.gates)] if cost.gates else []),
        ("read", bytes_text(cost.read_bytes)),
        ("write", f"{bytes_text(cost.write_bytes)}{free}"),
        ("memory", f"{bytes_text(cost.peak_memory)} at most"),
        ("time", f"about {seconds_text(cost.seconds)}"),
        ("plan", plan.content_digest()[:16]),
    ]
    return "\n".join(f"{name:8}{text}" for name, text in lines)


def rows_text(plan: Plan) -> str:
    """Return the table of all rows."""
    rows = [
        (
            job.name,
            "" if job.layer is None else job.layer,
            job.dtype if job.coding is None else job.coding.scheme,
            "x".join(map(str, job.shape)) or "()",
            plan.shards[job.shard].file,
            chain_text(job),
            job.rule,
        )
        for job in plan.jobs
    ]
    header = ("tensor", "layer", "dtype", "shape", "file", "what is done", "decided by")
    return table(header, rows, "lrllll")

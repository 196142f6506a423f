"""Plans written by hand, and what they must give according to the torch specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mergekit_lite.engine.local import execute
from mergekit_lite.engine.options import Options, Report
from mergekit_lite.ops import get
from mergekit_lite.ops._chain import merge
from mergekit_lite.plan.layout import lay_out, sign
from mergekit_lite.plan.types import Input, Job, Plan, Read, Step
from mergekit_lite.sources import Model
from mergekit_lite.sources.resolve import resolve

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EXPERTS = ("math", "code", "chat")


def save_models(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    experts: Sequence[str] = EXPERTS,
    scale: float = 0.01,
    seed: int = 0,
) -> dict[str, Model]:
    """Write a base and experts with heavy-tailed deltas, one file each, and open them."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file({k: v.to(dtype) for k, v in base.items()}, folder / "base.safetensors")
    for expert in experts:
        changed = {
            name: (value + scale * torch.randn(value.shape, generator=generator) ** 3).to(dtype)
            for name, value in base.items()
        }
        save_file(changed, folder / f"{expert}.safetensors")
    return {name: resolve(f"{name}.safetensors", relative_to=folder) for name in ("base", *experts)}


def plan_for(
    models: Mapping[str, Model],
    steps: Sequence[Step],
    *,
    dtype: str = "BF16",
    shard_size: int = 1 << 40,
    needs_base: bool = True,
    seed: int = 7,
) -> Plan:
    """Return a plan that merges every tensor of the base with the same steps."""
    experts = [name for name in models if name != "base"]
    jobs = [
        Job(
            name,
            dtype,
            info.shape,
            0,
            0,
            "merge",
            tuple(Read(expert, name) for expert in experts),
            Read("base", name) if needs_base else None,
            tuple(Step(s.op, {**get(s.op).defaults(), **s.params}, s.expert) for s in steps),
        )
        for name, info in models["base"].header.tensors.items()
    ]
    return finished(models, jobs, dtype, shard_size, seed)


def finished(
    models: Mapping[str, Model], jobs: Sequence[Job], dtype: str, shard_size: int, seed: int
) -> Plan:
    """Lay rows out and sign the plan."""
    rows, shards = lay_out(list(jobs), shard_size)
    inputs = {
        name: Input(name, str(model.root), model.kind, files=dict(model.header.files))
        for name, model in models.items()
    }
    return sign(Plan(inputs=inputs, jobs=rows, shards=shards, seed=seed, layers=1, dtype=dtype))


def run(plan: Plan, models: Mapping[str, Model], folder: Path, **options: object) -> Report:
    """Execute a plan without watching it."""
    return execute(plan, models, folder, Options(**options), lambda event: None)  # type: ignore[arg-type]


def output(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the shards in a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def expected(plan: Plan, models: Mapping[str, Model]) -> dict[str, torch.Tensor]:
    """Return what the torch specification makes of a plan."""
    stored = {name: load_file(model.root) for name, model in models.items()}
    result = {}
    for job in plan.jobs:
        base = stored["base"][job.base.name] if job.base else None
        inputs = {read.source: stored[read.source][read.name] for read in job.reads}
        merged = merge(base, inputs, job.steps, name=job.name, seed=plan.seed)
        result[job.name] = merged.to(DTYPES[job.dtype])
    return result


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def same_bytes(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors are equal bit for bit."""
    if set(left) != set(right):
        return False
    return all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(
            left[name].view(-1).view(torch.uint8), right[name].view(-1).view(torch.uint8)
        )
        for name in left
    )


def each(op: str, params: Mapping[str, object], experts: Sequence[str] = EXPERTS) -> list[Step]:
    """Return one transform for every expert."""
    return [Step(op, dict(params), expert) for expert in experts]

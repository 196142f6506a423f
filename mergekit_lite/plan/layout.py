"""Where every output tensor goes: order, shards and byte offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from mergekit_lite.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from mergekit_lite.checkpoint.coded.settings import KEYS as QUANTIZATION_KEYS
from mergekit_lite.checkpoint.header import header_text
from mergekit_lite.checkpoint.index import shard_names
from mergekit_lite.plan.row_kinds import Part
from mergekit_lite.plan.types import Job, Plan, Shard

OUTPUT_DTYPES: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names a recipe and a config use -> names that safetensors uses."""

_CONFIG_NAMES = {"F64": "float64", **{stored: name for name, stored in OUTPUT_DTYPES.items()}}
_DTYPE_KEYS = ("dtype", "torch_dtype")
_NO_DIGEST = "0" * 64


def output_dtype(stored: str, wanted: str) -> str:
    """Return the dtype a tensor is written in: only floats follow the recipe's `output.dtype`.

    Args:
        stored: safetensors dtype of the base's tensor.
        wanted: `base`, or a key of `OUTPUT_DTYPES`.
    """
    return stored if wanted == "base" or stored not in FLOAT_DTYPES else OUTPUT_DTYPES[wanted]


def main_dtype(jobs: Iterable[Job]) -> str:
    """Return the float dtype that most output bytes have; without floats, that of any bytes.

    What is quantised counts as the tensors that it stands for.
    """
    nbytes: dict[str, int] = {}
    for job in jobs:
        dtype = job.dtype if job.coding is None else job.coding.dtype
        nbytes[dtype] = nbytes.get(dtype, 0) + prod(job.shape) * DTYPE_BYTES[dtype]
    floats = {dtype: count for dtype, count in nbytes.items() if dtype in FLOAT_DTYPES}
    candidates = floats or nbytes
    return max(candidates, key=lambda dtype: (candidates[dtype], dtype), default="F32")


def config_changes(config: Mapping[str, Any] | None, dtype: str) -> dict[str, Any]:
    """Return what must change in the donor's config so that it names the dtype written.

    Only keys that the donor has are changed, nested configs included (a nested one is given
    whole); a donor that names no dtype at all gets `torch_dtype`, which all readers know.
    """
    name = _CONFIG_NAMES.get(dtype)
    if not config or name is None:
        return {}
    changes: dict[str, Any] = {}
    for key, value in config.items():
        if key in _DTYPE_KEYS and value != name:
            changes[key] = name
        elif (
            isinstance(value, Mapping) and key.endswith("_config") and key not in QUANTIZATION_KEYS
        ):
            kept = {k: v for k, v in value.items() if k not in QUANTIZATION_KEYS}
            nested = {k: name for k in _DTYPE_KEYS if value.get(k) not in (None, name)}
            if nested or len(kept) < len(value):
                changes[key] = {**kept, **nested}
    named = any(key in config for key in _DTYPE_KEYS)
    nested_names = any(
        isinstance(value, Mapping) and any(key in value for key in _DTYPE_KEYS)
        for value in config.values()
    )
    # Configs of diffusers name no dtype, and their readers warn of keys that they do not know.
    if not named and not nested_names and "_diffusers_version" not in config:
        changes["torch_dtype"] = name
    return changes


def config_without(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the entries of a quantised donor's config that would not be true of its floats."""
    return tuple(key for key in QUANTIZATION_KEYS if key in (config or {}))


def job_bytes(job: Job) -> int:
    """Return the bytes of all that a row writes."""
    return sum(part_bytes(part) for part in job.parts)


def part_bytes(part: Part) -> int:
    """Return the bytes of one tensor that a row writes."""
    return prod(part.shape) * DTYPE_BYTES[part.dtype]


def split(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Fill shards greedily, in order: no shard is empty, and only a lone tensor exceeds `limit`.

    Args:
        sizes: bytes of each tensor.
        limit: most bytes of tensors in one shard.
    """
    shards: list[list[int]] = []
    filled = 0
    for index, size in enumerate(sizes):
        if not shards or filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(index)
        filled += size
    return shards


def one_file(jobs: Iterable[Job]) -> int:
    """Return a shard size that keeps all rows in one file."""
    return sum(map(job_bytes, jobs)) + 1


def lay_out(
    jobs: Sequence[Job], shard_size: int, parts: Sequence[str] = ("model",)
) -> tuple[tuple[Job, ...], tuple[Shard, ...]]:
    """Give every row its shard and offset, and every shard its name and (unsigned) header.

    Args:
        jobs: rows in the base's file order, so that shards are filled by sequential reads.
        shard_size: most bytes of tensors in one shard; a larger tensor gets its own.
        parts: how the files of each model begin; those of a pipeline are in folders, whose names
            their rows begin with.

    Returns:
        The rows ordered by (shard, start), and the shards.
    """
    placed: list[Job] = []
    shards: list[Shard] = []
    for part in parts:
        folder, slash, _ = part.rpartition("/")
        own = [job for job in jobs if job.name.startswith(folder + slash)] if folder else jobs
        groups = split([job_bytes(job) for job in own], shard_size)
        for group, file in zip(groups, shard_names(len(groups), part), strict=True):
            rows = [own[i] for i in group]
            header, starts, nbytes = _header(rows, file, _NO_DIGEST)
            follow = iter(starts)
            there = [_placed(row, len(shards), [next(follow) for _ in row.parts]) for row in rows]
            placed += sorted(there, key=lambda row: (row.start, row.name))
            shards.append(Shard(file, nbytes, header))
    return tuple(placed), tuple(shards)


def _placed(job: Job, shard: int, starts: Sequence[int]) -> Job:
    """Return a row in its shard, with the offset of every tensor that it writes."""
    coding = job.coding
    if coding is not None:
        parts = (replace(p, start=start) for p, start in zip(coding.parts, starts, strict=True))
        coding = replace(coding, parts=tuple(parts))
    return replace(job, shard=shard, start=starts[0], coding=coding)


def sign(plan: Plan) -> Plan:
    """Return the plan with its digest in the header of every shard; no offset moves."""
    digest = plan.content_digest()
    by_shard: list[list[Job]] = [[] for _ in plan.shards]
    for job in plan.jobs:
        by_shard[job.shard].append(job)
    shards = tuple(
        replace(shard, header=_header(rows, shard.file, digest)[0])
        for shard, rows in zip(plan.shards, by_shard, strict=True)
    )
    return replace(plan, shards=shards)


def stored_name(name: str, file: str) -> str:
    """Return the name under which a tensor is in a file: without the folder of its component."""
    folder, slash, _ = file.rpartition("/")
    return name.removeprefix(folder + slash)


def _header(rows: Sequence[Job], file: str, digest: str) -> tuple[str, list[int], int]:
    return header_text(
        [(stored_name(p.name, file), p.dtype, p.shape) for row in rows for p in row.parts],
        {"format": "pt", "mergekit_lite.plan": digest},
    )

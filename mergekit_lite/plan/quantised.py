"""Which matrices of the output are quantised, and what is wrong with that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, role_of
from mergekit_lite.checkpoint.coded.schemes import SCHEMES, Codes, OutputScheme
from mergekit_lite.checkpoint.names import is_side_stack, stack_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.layout import main_dtype
from mergekit_lite.plan.row_kinds import Coding, Part
from mergekit_lite.plan.row_steps import IDENTITY
from mergekit_lite.plan.types import Job
from mergekit_lite.recipe.schema import Quantize, Recipe
from mergekit_lite.sources import Model

KEY = "quantization_config"
"""Entry of a config.json in which loaders look."""

_WEIGHT = ".weight"
_FUSED = re.compile(r"experts?\b|_moe\b", re.IGNORECASE)
_LOOKED_UP = re.compile(r"embed|relative_attention_bias|codebook")
"""Modules inside layers whose matrices are tables."""
_PLAIN_ROLES = ("embedding", "head", "norm", "router")
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Families whose matrices are not those of linear layers."""
_GROUPS = (32, 64, 128)
"""Sizes of groups that vLLM has fast kernels for."""


@dataclass
class Quantised:
    """What becomes of the rows of an output that is quantised.

    Attributes:
        jobs: all rows.
        config: the `quantization_config`.
    """

    jobs: list[Job]
    config: dict[str, Any] = field(default_factory=dict)


def quantised(
    recipe: Recipe, wanted: Quantize, base: Model, jobs: Sequence[Job], findings: Findings
) -> Quantised:
    """Return the rows of which the matrices of linear layers are written as codes.

    Args:
        recipe: what is wanted.
        wanted: how.
        base: the donor of the config.
        jobs: rows of the unquantised output.
        findings: where problems are noted.
    """
    where = recipe.at("output", "quantize")
    scheme = SCHEMES[wanted.scheme]
    if not _can_be(recipe, wanted, scheme, base, jobs, findings):
        return Quantised(list(jobs))
    dtype = main_dtype(jobs)
    search = wanted.scales == "mse"
    codes = scheme.codes_for(dtype, wanted.group_size, search=search)
    found, kept, unused = [], ["lm_head"], dict(enumerate(wanted.ignore))
    for job in jobs:
        module = job.name.removesuffix(_WEIGHT)
        named = [n for n, pattern in enumerate(wanted.ignore) if _names(pattern, module)]
        for n in named:
            unused.pop(n, None)
        if not named and _is_fused(job):
            findings.problem_with(
                f"`{job.name}`",
                f"{wanted.scheme} is for matrices, and here all experts of a layer are one tensor",
                where,
                "name them under `ignore`, or quantise a checkpoint that has them one by one",
            )
        elif _is_linear(job) and (named or role_of(job.name) in _PLAIN_ROLES or _is_aside(job)):
            kept.append(module)
        elif _is_linear(job) and _fits(job, codes, wanted, where, findings):
            job = _coded(job, wanted.scheme, codes)
        found.append(job)
    _check_ignored(recipe, unused, findings)
    if not any(job.coding for job in found) and not findings.all_problems():
        findings.problem("no matrix is left to quantise", where, "narrow `ignore`")
    return Quantised(found, scheme.config(codes, list(dict.fromkeys(kept))))


def _can_be(
    recipe: Recipe,
    wanted: Quantize,
    scheme: OutputScheme,
    base: Model,
    jobs: Sequence[Job],
    findings: Findings,
) -> bool:
    """Note what keeps an output as a whole from being quantised."""
    where = recipe.at("output", "quantize")
    problems = []
    if recipe.output.lora is not None:
        problems.append(("an adapter is not quantised", "leave out `quantize`, or `lora`"))
    if any("/" in job.name for job in jobs):
        problems.append(("a pipeline of several models is not quantised", "leave out `quantize`"))
    elif base.config is None:
        what = "the base has no config.json, in which loaders look how weights are quantised"
        problems.append((what, "name a folder with a config as the base"))
    elif (family := configs.model_type(base.config)) in _TRANSPOSED:
        what = f"a `{family}` model has no linear layers, which {wanted.scheme} is for"
        problems.append((what, "leave out `quantize`"))
    stored = [job.name for job in jobs if job.dtype not in FLOAT_DTYPES and _WEIGHT in job.name]
    if stored:
        what = f"the base is quantised, and its codes are moved as they are (`{stored[0]}`)"
        problems.append((what, "leave out `quantize`: the result is quantised as the base is"))
    if wanted.group_size is not None and not scheme.grouped:
        grouped = " and ".join(name for name, each in SCHEMES.items() if each.grouped)
        problems.append((f"groups of {wanted.scheme} have one size", f"{grouped} take it"))
    if wanted.scales == "mse" and not scheme.searchable:
        known = ", ".join(name for name, each in SCHEMES.items() if each.searchable)
        problems.append((f"{wanted.scheme} does not search its scales", f"these do: {known}"))
    for what, hint in problems:
        findings.problem(what, where, hint)
    if wanted.group_size and wanted.group_size not in _GROUPS and scheme.grouped:
        findings.warn(
            f"vLLM's kernels know groups of 32, 64 and 128 columns, not of {wanted.group_size}",
            where,
        )
    return not problems


def _names(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return fnmatchcase(module, pattern.removesuffix(_WEIGHT))


def _is_fused(job: Job) -> bool:
    """Return whether a tensor holds the matrices of all experts of a layer."""
    return len(job.shape) == 3 and job.dtype in FLOAT_DTYPES and bool(_FUSED.search(job.name))


def _is_linear(job: Job) -> bool:
    """Return whether a tensor is a linear layer's matrix, in the layers or beside them."""
    module = job.name.removesuffix(_WEIGHT)
    return (
        module != job.name
        and len(job.shape) == 2
        and job.dtype in FLOAT_DTYPES
        and not _LOOKED_UP.search(module.rpartition(".")[2])
        and role_of(job.name) not in ("embedding", "norm")
    )


def _is_aside(job: Job) -> bool:
    """Return whether a matrix is outside the layers of the language model."""
    return job.layer is None or is_side_stack(stack_of(job.name))


def _fits(job: Job, codes: Codes, wanted: Quantize, where: str, findings: Findings) -> bool:
    """Return whether a matrix's columns make whole groups, and note it where they do not."""
    down, across = codes.block
    rows, columns = job.shape
    told = f"`{job.name}` {rows}x{columns}"
    if down == 1 and across and columns % across:
        hint = "name it under `ignore`, or "
        hint += "choose a `group_size` that divides" if wanted.scheme[0] == "W" else "take FP8"
        findings.problem_with(
            told, f"{wanted.scheme} needs whole groups of {across} columns", where, hint
        )
        return False
    if down > 1 and (rows % down or columns % across):
        findings.warn_of(
            told,
            f"blocks of {down}x{across} are cut off at the edge; vLLM wants whole ones",
            where,
        )
    return True


def _coded(job: Job, scheme: str, codes: Codes) -> Job:
    """Return a row as fp32 numbers that become codes; what was only copied is computed."""
    parts = tuple(
        Part(job.name + suffix, dtype, shape)
        for suffix, (dtype, shape) in codes.stored(job.shape).items()
    )
    steps = job.steps if job.kind == "merge" else (IDENTITY,)
    coding = Coding(scheme, job.dtype, codes, parts)
    return replace(job, kind="merge", dtype="F32", steps=steps, coding=coding)


def _check_ignored(recipe: Recipe, unused: Mapping[int, str], findings: Findings) -> None:
    for n, pattern in unused.items():
        if pattern == "lm_head":  # of a tied head there is no tensor
            continue
        findings.problem(
            f"`ignore`: `{pattern}` names no module of the output",
            recipe.at("output", "quantize", "ignore", n),
            "`mergekit-lite inspect` lists the names of a model",
        )

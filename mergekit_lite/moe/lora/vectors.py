"""Files that gates of adapters are made from: vectors for each module, embeddings of tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, Header, read_checkpoint
from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.moe.lora.mixture import Module
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.names import few
from mergekit_lite.recipe.schema import MoeExpert, Recipe

_SPELLINGS = ("{}", "{}.weight", "{}.gate", "base_model.model.{}", "base_model.model.{}.gate")


def vector_name(header: Header, module: str) -> str | None:
    """Return the name under which a file holds the vector of a module, None where it does not."""
    spelt = (spelling.format(module) for spelling in _SPELLINGS)
    return next((name for name in spelt if name in header.tensors), None)


def check_vectors(
    recipe: Recipe,
    experts: Sequence[MoeExpert],
    modules: Mapping[str, Module],
    findings: Findings,
) -> None:
    """Note vectors that are missing, or do not fit; only headers are read."""
    for expert in experts:
        if expert.rows is None:
            findings.problem(
                f"expert `{expert.expert}` has no vectors, which this gate is made of",
                expert.where,
                f"write `{{expert: {expert.expert}, rows: FILE.safetensors}}`, or take the gate"
                " `arrow`, which needs none",
            )
            continue
        try:
            header = read_checkpoint(recipe.folder / Path(expert.rows).expanduser())
        except MergekitLiteError as error:
            for problem in error.problems:
                findings.problem(problem.what, expert.where, problem.hint)
            continue
        wrong = [
            f"{name} (wanted {module.inputs} numbers)"
            for name, module in modules.items()
            if not _fits(header, name, module)
        ]
        if wrong:
            findings.problem(
                f"`{expert.rows}` lacks vectors of modules, or they do not fit: {few(wrong)}",
                expert.where,
                "a vector for each module that an adapter changes, under the module's name",
            )


def _fits(header: Header, name: str, module: Module) -> bool:
    stored = vector_name(header, name)
    if stored is None:
        return False
    info = header.tensors[stored]
    return info.dtype in FLOAT_DTYPES and math.prod(info.shape) == module.inputs


def check_tasks(recipe: Recipe, experts: Sequence[MoeExpert], file: str, findings: Findings) -> int:
    """Return how many entries an expert's embedding has, noting what is wrong with the file."""
    where = recipe.at("moe", "gate", "tasks")
    hint = 'write {"NAME": [numbers], ...}, with the name of each expert'
    try:
        table = read_tasks(recipe.folder / Path(file).expanduser())
    except (OSError, ValueError) as error:
        findings.problem(f"`{file}` cannot be read: {error}", where, hint)
        return 0
    names = dict.fromkeys(expert.expert for expert in experts)
    missing = [name for name in names if name not in table]
    if missing:
        findings.problem(f"`{file}` has no embedding of {few(missing)}", where, hint)
        return 0
    if len({len(table[name]) for name in names}) > 1:
        findings.problem(f"the embeddings in `{file}` differ in length", where, hint)
    odd = [n for n in names if not any(table[n]) or not all(map(math.isfinite, table[n]))]
    if odd:
        findings.problem(f"`{file}` has no direction for {few(odd)}", where, hint)
    return len(table[next(iter(names))])


def read_tasks(path: Path) -> dict[str, list[float]]:
    """Return the embedding of each task in a JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such file.
    """
    found: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    for name, row in found.items():
        if not isinstance(row, list) or not row or not all(type(x) in (int, float) for x in row):
            raise ValueError(f"`{name}` is no list of numbers")
    return {name: [float(x) for x in row] for name, row in found.items()}

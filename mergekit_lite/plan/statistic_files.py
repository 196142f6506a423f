"""Whether the statistic files of a recipe's steps fit its tensors, from their headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, Header, TensorInfo, read_checkpoint
from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._calibration import Wanted, files_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import shape_text
from mergekit_lite.plan.names import few
from mergekit_lite.plan.types import Plan
from mergekit_lite.recipe.schema import Recipe


class StatisticFiles:
    """The statistic files of one plan; each header is read once.

    Args:
        recipe: whose folder relative paths start from.
        findings: where problems are noted.
    """

    def __init__(self, recipe: Recipe, findings: Findings) -> None:
        self.recipe = recipe
        self.findings = findings
        self._headers: dict[str, Header | None] = {}
        self._used: dict[str, int] = {}
        self._places: dict[str, str] = {}

    def has(
        self,
        spec: OpSpec,
        params: Mapping[str, Any],
        info: TensorInfo,
        names: Sequence[str],
        where: str,
    ) -> bool:
        """Return whether an op finds its statistics of a tensor; note what is wrong with them.

        False only where no file has one and the op has something to put in its place.

        Args:
            info: the output tensor.
            names: the op's inputs, in order; one for a transform.
            where: place in the recipe.
        """
        files = files_of(params, names)
        if not self._assigned(spec, files, names, where):
            return True
        found = {name: self._tensor(spec, path, info.name, where) for name, path in files.items()}
        wanted = spec.statistic(params, info.shape) if spec.statistic else None
        if not any(found.values()) and spec.without is not None:
            if wanted is None or not wanted.optional:
                self.findings.warn_of(
                    f"`{info.name}`",
                    f"no statistic file of `{spec.name}` has these tensors, which get the mean",
                    where,
                )
            return False
        for name, path in files.items():
            self._check(spec, path, name, info, found[name], wanted, where)
        return True

    def holds(
        self, spec: OpSpec, params: Mapping[str, Any], name: str, names: Sequence[str], where: str
    ) -> bool:
        """Return whether any file of an op has a statistic of a tensor; nothing is noted."""
        files = files_of(params, names).values()
        return any([self._tensor(spec, path, name, where) is not None for path in files])

    def _assigned(
        self, spec: OpSpec, files: Mapping[str, str], names: Sequence[str], where: str
    ) -> bool:
        """Note experts that have no file, or that share one."""
        lacking = [name for name in names if name not in files]
        hint = f"write `file: {{{', '.join(f'{name}: PATH' for name in names)}}}`"
        if lacking:
            self.findings.problem(
                f"`{spec.name}.file` names no file for {', '.join(lacking)}", where, hint
            )
        elif len(names) > 1 and len(set(files.values())) < len(names):
            self.findings.problem(
                f"`{spec.name}.file` names one file for several experts", where, hint
            )
        else:
            return True
        return False

    def _check(
        self,
        spec: OpSpec,
        path: str,
        name: str,
        info: TensorInfo,
        stored: TensorInfo | None,
        wanted: Wanted | None,
        where: str,
    ) -> None:
        hint = "measure it again, on the model that this recipe merges"
        if stored is None:
            if self._headers.get(path) is not None:
                self.findings.problem_with(
                    f"`{info.name}`", f"`{path}`, for `{name}`, lacks statistics", where, hint
                )
        elif stored.dtype not in FLOAT_DTYPES:
            self.findings.problem_with(
                f"`{info.name}` {stored.dtype}", f"`{path}` holds no floats", where, hint
            )
        elif wanted is not None and stored.shape != wanted.shape:
            self.findings.problem_with(
                f"`{info.name}` {shape_text(stored.shape)} (`{spec.name}` wants"
                f" {shape_text(wanted.shape)})",
                f"`{path}`, for `{name}`, has statistics of other shapes",
                where,
                hint,
            )

    def _tensor(self, spec: OpSpec, path: str, name: str, where: str) -> TensorInfo | None:
        if path not in self._headers:
            self._headers[path] = self._read(spec, path, where)
            self._used[path], self._places[path] = 0, where
        header = self._headers[path]
        stored = header.tensors.get(name) if header is not None else None
        self._used[path] += stored is not None
        return stored

    def _read(self, spec: OpSpec, path: str, where: str) -> Header | None:
        full = self.recipe.folder / path
        if not full.exists():
            return None  # noted where the chain was resolved
        try:
            return read_checkpoint(full)
        except (DataError, SourceError, RecipeError) as error:
            for problem in error.problems:
                self.findings.problem(f"`{spec.name}.file`: {problem.what}", where, problem.hint)
            return None

    def check_used(self) -> None:
        """Note files that hold nothing for any tensor that asked."""
        for path, used in self._used.items():
            header = self._headers[path]
            if header is not None and not used:
                self.findings.problem(
                    f"`{path}` has no statistic for any tensor of this merge; it holds"
                    f" {few(list(header.tensors))}",
                    self._places[path],
                    "tensors of a statistic file are named like the output's",
                )


def statistic_files(plan: Plan) -> dict[str, Path]:
    """Return every statistic file that a plan's steps read: as the recipe names it -> path."""
    specs = registry()
    named = set()
    for job in plan.jobs:
        for step in job.steps:
            if specs[step.op].calibration:
                names = [step.expert] if step.expert else [read.source for read in job.reads]
                named |= set(files_of(step.params, names).values())
    found: dict[str, Path] = {}
    for name in sorted(named):
        path = Path(plan.folder) / name
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        found |= {f"{name}/{file.name}": file for file in inside} or {name: path}
    return found

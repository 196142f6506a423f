"""Whether a patch is of the base it is merged into, as far as headers tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mergekit_lite.checkpoint import LoraFactors, TensorInfo
from mergekit_lite.checkpoint.adapter import Adapter
from mergekit_lite.checkpoint.patch import SAME, WHOLE, Patch, packed
from mergekit_lite.errors import DataError
from mergekit_lite.plan.findings import Findings

_DECODED = 1 << 20
"""Bytes of codes that are in memory while a tile is decoded, about."""


def check_patch(
    name: str, patch: Patch, base: Mapping[str, TensorInfo], findings: Findings, where: str
) -> bool:
    """Note what shows that a patch is of another base; return whether anything does.

    Args:
        name: of the expert.
        patch: its description.
        base: the base's tensors.
        findings: where problems are noted.
        where: place in the recipe.
    """
    misfits = list(_misfits(patch, base))
    for misfit in misfits:
        findings.problem_with(
            misfit,
            f"the patch `{name}` was made against another base",
            where,
            f"use the base it was made against (`{patch.base}`)",
        )
    unknown = False
    for scheme in {row.scheme for row in patch.rows.values()} - {SAME, WHOLE}:
        from mergekit_lite.compress import scheme_named  # with numpy

        try:
            scheme_named(scheme)
        except DataError as error:
            unknown = True
            problem = error.problems[0]
            findings.problem(problem.what, where, problem.hint)
    return bool(misfits) or unknown


def _misfits(patch: Patch, base: Mapping[str, TensorInfo]) -> Iterator[str]:
    for name, row in patch.rows.items():
        info = base.get(name)
        if info is None:
            yield f"`{name}`, which this base lacks"
        elif (info.dtype, info.shape) != (row.dtype, row.shape):
            found, told = (f"{one.dtype} {list(one.shape)}" for one in (info, row))
            yield f"`{name}` {told} (this base {found})"
    for name in base:
        if name not in patch.rows:
            yield f"`{name}`, which only this base has"


def held_by(adapter: Adapter, factors: LoraFactors) -> int:
    """Return the bytes that stay in memory while a compressed difference is read; 0 for others."""
    if adapter.patch is None or not factors.packed:
        return 0
    from mergekit_lite.compress import scheme_named  # with numpy

    found = packed(adapter.patch, factors.packed, adapter.header.tensors)
    return scheme_named(found.scheme).held(found) + min(found.nbytes, _DECODED)

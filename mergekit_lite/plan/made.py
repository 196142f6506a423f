"""Rows of tensors that no input has: they are made before the others run."""

from __future__ import annotations

from math import prod

from mergekit_lite.plan.types import GATE, Job, Read, Step

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})


def made_job(name: str, dtype: str, shape: tuple[int, ...], layer: int | None, rule: str) -> Job:
    """Return the row of a tensor that is made in fp32, in a file beside the output.

    Args:
        name, dtype, shape: of the tensor in the output.
        layer: it belongs to.
        rule: what in the recipe asks for it.
    """
    return Job(
        name=name,
        dtype=dtype,
        shape=shape,
        shard=0,
        start=0,
        kind="copy" if dtype == "F32" else "merge",
        reads=(Read(GATE, name, nbytes=4 * prod(shape)),),
        steps=() if dtype == "F32" else (_COPIED,),
        layer=layer,
        rule=rule,
    )

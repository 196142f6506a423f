"""How deep each stack of layers is: an encoder and a decoder each count their own."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.checkpoint.names import layer_of, stack_of
from mergekit_lite.plan.types import Plan


def stack_layers(plan: Plan) -> Mapping[str, int]:
    """Return the number of layers of each stack by what its tensors' names begin with.

    The deepest one has as many as the plan says, whichever of its rows are left out.
    """
    found: dict[str, int] = {}
    for job in plan.jobs:
        layer = layer_of(job.name)
        if layer is not None:
            stack = stack_of(job.name)
            found[stack] = max(found.get(stack, 0), layer + 1)
    deepest = max(found.values(), default=0)
    return {stack: plan.layers if count == deepest else count for stack, count in found.items()}

"""Rows of zeros: every expert is as good as any other."""

from __future__ import annotations

from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate


@gate(title="No routing", routes=False)
def zeros(request: GateRequest) -> Gates:
    """Give every expert the same weight: with all experts active, the mean of what they say.

    Which experts win a tie is up to the loader. So this is for models whose tokens pass all
    experts, for experts that are all the same, and for training.
    """
    import numpy as np

    shape = len(request.experts), request.hidden
    return Gates({layer: np.zeros(shape, np.float32) for layer in request.routers})

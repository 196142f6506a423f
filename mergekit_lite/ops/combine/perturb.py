"""Add noise to a tensor, so that copies of one model part ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._random import normals
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Noise on a tensor",
    paper="none: how copies of one model are told apart before they are trained",
    space="weight",
    experts=(1, 1),
    random=True,
    needs=Totals(
        gram=True, plain=True, wanted=lambda params: params["relative"] and params["noise"] > 0
    ),
    vectors=[
        Vector([[1, -2]], [1, -2], {"noise": 0.0}, source="no noise, by hand"),
        Vector([[1, -2]], [0.5, -1], {"noise": 0.0, "scale": 0.5}, source="scaled, by hand"),
        Vector([[3, 3, 3]], [3, 3, 3], {"noise": 0.5}, source="equal entries spread by 0, by hand"),
    ],
)
def perturb(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    sums: Sums | None,
    noise: Annotated[
        float,
        Range(at_least=0),
        Doc("standard deviation of the noise, as a part of the tensor's own or absolute"),
    ] = 0.01,
    relative: Annotated[
        bool, Doc("whether `noise` is a part of the tensor's own standard deviation")
    ] = True,
    scale: Annotated[float, Doc("multiplies the tensor and its noise")] = 1.0,
) -> Tensor:
    """Add normal noise to one expert's tensor.

    Noise of 0.001 of the weights' own spread changes what a model says by 1e-6 nats, a hundredth
    by 1e-4, a twentieth by 3e-3.

    Order of operations: s = float32(noise), times the standard deviation of all entries (fp64) if
    relative; y = (x + float32(n_i) * s) * float32(scale), where n_i is the normal number of
    entry i.
    """
    import torch

    x = inputs[0].float()
    spread = noise
    if relative and noise > 0:
        spread = noise * _deviation(place.size, sums)
    if spread > 0:
        drawn = normals(place.start, x.numel(), place.key).astype("float32")
        x = x + torch.from_numpy(drawn).to(x.device).reshape(x.shape) * single(spread)
    return x * single(scale)


def _deviation(size: int, sums: Sums | None) -> float:
    """Return the standard deviation of all entries of a tensor."""
    if sums is None or size == 0:
        return 0.0
    mean = sums.plain[0] / size
    return math.sqrt(max(sums.gram[0][0] / size - mean * mean, 0.0))

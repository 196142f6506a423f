"""Random rows, for routers that are to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc, Range
from mergekit_lite.ops._place import random_key
from mergekit_lite.ops._random import normals, uniforms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@gate(title="Random rows", routes=False)
def random(
    request: GateRequest,
    *,
    init: Annotated[
        Literal["normal", "uniform", "unit_uniform", "centred_uniform"],
        Doc(
            "`normal`: N(0, std); `uniform`: between -1 and 1 over the root of the width;"
            " `unit_uniform`: between 0 and 1; `centred_uniform`: even around 0 with this std"
        ),
    ] = "normal",
    std: Annotated[
        float,
        Range(above=0),
        Doc(
            "standard deviation; 0.02 is what Switch and sparse upcycling use, 1 mergekit's"
            " `random`, 0.2887 and 0.02 those of Drop-Upcycling"
        ),
    ] = 0.02,
) -> Gates:
    """Draw every row at random: tokens go anywhere until the router is trained.

    Numbers are drawn by (seed, router, entry), so neither the number of experts of another layer
    nor the machine changes them.
    """
    return Gates(
        {
            layer: _drawn(request, name, init, std).reshape(len(request.experts), request.hidden)
            for layer, name in request.routers.items()
        }
    )


def _drawn(request: GateRequest, name: str, init: str, std: float) -> NDArray[np.float32]:
    import numpy as np

    key = random_key(request.seed, f"gate.{init}", "", name)
    count = len(request.experts) * request.hidden
    if init == "normal":
        return (normals(0, count, key) * std).astype(np.float32)
    even = uniforms(0, count, key)
    if init == "unit_uniform":
        return even.astype(np.float32)
    half = request.hidden**-0.5 if init == "uniform" else std * 3**0.5
    return ((2.0 * even - 1.0) * half).astype(np.float32)

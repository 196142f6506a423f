"""Put a task vector through a codec and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, Vector, transform

if TYPE_CHECKING:
    from torch import Tensor

COMPARING = {"compeft", "ultradelta"}
"""Codecs that look at all tensors of a model before they compress the first."""


def _codecs() -> Any:
    """Return the codecs' side of this op; they are a room above, so they are found by name."""
    return import_module("mergekit_lite.compress.through")


def given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the codec's own parameters that the recipe gives."""
    return {n: v for n, v in params.items() if n != "codec" and v is not None}


def check(params: Mapping[str, Any]) -> list[str]:
    """The codec must know every parameter, and look at each tensor by itself."""
    codec = str(params["codec"])
    if codec in COMPARING:
        return [
            f"`{codec}` compares all tensors of a model, which a step cannot; compress the expert"
            f" with `mergekit-lite compress --method {codec}` and name the patch as the expert"
        ]
    problems: list[str] = _codecs().problems(codec, given(params))
    return problems


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of codes, of what they decode to, and of what a decomposition takes."""
    size = 1
    for side in shape:
        size *= side
    return size * (20 if params["codec"] in ("svd", "lowrank_sparse", "delta_come") else 12)


def work(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> float:
    """Return the operations of the products with drawn directions."""
    if len(shape) != 2 or params["codec"] not in ("svd", "lowrank_sparse", "delta_come"):
        return 0.0
    rank = min(*shape, params.get("rank") or 32)
    rounds = (params.get("rounds") or 4) if params["codec"] == "lowrank_sparse" else 1
    return 16.0 * rounds * rank * shape[0] * shape[1]


@transform(
    title="Compression of task vectors",
    paper="the codecs of `mergekit-lite compress`, each with its own",
    reach="tensor",
    check=check,
    workspace=workspace,
    work=work,
    vectors=[
        Vector(
            [[[6, -1, 1], [0.4, 0, 2.6]]],
            [[6, -1, 1], [0, 0, 3]],
            {"codec": "tvq", "bits": 3},
            source="levels from -1 to 6, one apart, by hand",
        ),
        Vector(
            [[[4, -1, 1, 3]]],
            [[4, 0, 0, 3]],
            {"codec": "intq", "bits": 2, "group": 2},
            source="three levels for each pair, by hand",
        ),
        Vector(
            [[4, -3, 1, 0.5, 0, -2]],
            [4, -3, 0, 0, 0, 0],
            {"codec": "topk_sparse", "keep": 0.34},
            source="two of six entries, by hand",
        ),
        Vector(
            [[[4, -3, 1], [0.5, 0, -2]]],
            [[1.75, -1.75, 1.75], [1.75, 1.75, -1.75]],
            {"codec": "bitdelta"},
            source="signs and the mean magnitude, by hand",
        ),
    ],
)
def quantize(
    delta: Tensor,
    *,
    place: Place,
    codec: Annotated[
        Literal[
            "bitdelta",
            "compeft",
            "delta_come",
            "intq",
            "lowrank_sparse",
            "svd",
            "topk_sparse",
            "tvq",
            "ultradelta",
        ],
        Doc("the codec; `compeft` and `ultradelta` need the whole model and are refused"),
    ],
    keep: Annotated[
        float | None, Range(above=0, at_most=1), Doc("topk_sparse, lowrank_sparse: part kept")
    ] = None,
    rank: Annotated[
        int | None, Range(at_least=1), Doc("svd, lowrank_sparse: rank of each matrix")
    ] = None,
    bits: Annotated[Literal[2, 3, 4, 8] | None, Doc("intq, tvq: bits of an entry")] = None,
    group: Annotated[
        int | None, Range(at_least=0), Doc("intq, delta_come: entries that share a scale")
    ] = None,
    scales: Annotated[
        Literal["tensor", "row"] | None, Doc("bitdelta: one scale for a tensor, or for a row")
    ] = None,
    energy: Annotated[
        float | None, Range(above=0, below=1), Doc("svd: part of the sum of squares to hold")
    ] = None,
    exact: Annotated[bool | None, Doc("svd: the full decomposition")] = None,
    dtype: Annotated[Literal["float16", "float32"] | None, Doc("svd: of the factors")] = None,
    rounds: Annotated[
        int | None, Range(at_least=1, at_most=100), Doc("lowrank_sparse: fits in turn")
    ] = None,
    ratio: Annotated[
        float | None, Range(at_least=1), Doc("delta_come: how many times fewer bits than 16")
    ] = None,
    embeddings: Annotated[
        bool | None, Doc("bitdelta, delta_come: compress embeddings and heads too")
    ] = None,
) -> Tensor:
    """Give an expert's difference the error that a patch of it would have.

    The difference is compressed and decoded again: the merge is that of the patches, bit for bit,
    without making them. Parameters are those of the codec (docs/compression.md), which has its own
    defaults. What the codec stores whole stays as it is.

    Order of operations: as the codec encodes, and as its scheme decodes, in fp32.
    """
    import torch

    params = given(
        {
            "keep": keep,
            "rank": rank,
            "bits": bits,
            "group": group,
            "scales": scales,
            "energy": energy,
            "exact": exact,
            "dtype": dtype,
            "rounds": rounds,
            "ratio": ratio,
            "embeddings": embeddings,
        }
    )
    values = delta.detach().float().cpu().contiguous()
    if not values.numel():
        return values
    flat = values.reshape(-1).numpy()
    found = _codecs().through(flat, tuple(values.shape), place.name, codec, params)
    return torch.from_numpy(found).reshape(values.shape).to(delta.device)

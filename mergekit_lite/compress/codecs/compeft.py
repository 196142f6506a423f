"""Signs of the largest entries of the model, with one scale for all."""

from __future__ import annotations

from typing import Annotated, Literal

from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.schemes import masks, rice
from mergekit_lite.errors import DataError
from mergekit_lite.ops._parameters import Doc, Range


@codec(
    title="ComPEFT",
    paper="Yadav et al. 2023, arXiv 2311.13171",
    keep="keep",
    vectors=[
        CodecVector(
            [4, -3, 1, 0.5, 0, -2],
            [2.45798, -2.45798, 0, 0, 0, 0],
            {"keep": 0.34},
            source="standard deviation with n - 1",
        ),
        CodecVector(
            [4, -3, 1, 0.5, 0, -2],
            [7, -7, 0, 0, 0, 0],
            {"keep": 0.34, "alpha": 2.0, "scale": "mean_abs", "form": "masks"},
            source="by hand: 2 * (4 + 3) / 2",
        ),
        CodecVector(
            [3, -3, 3, 3], [3, -3, 0, 0], {"keep": 0.5, "scale": "l2"},
            source="equal magnitudes are kept by flat index",
        ),
    ],
)  # fmt: skip
def compeft(
    delta: Delta,
    *,
    keep: Annotated[
        float, Range(above=0, at_most=1), Doc("part of the model's entries that is kept")
    ] = 0.05,
    alpha: Annotated[float, Range(above=0), Doc("multiplies the scale")] = 1.0,
    scale: Annotated[
        Literal["std", "l2", "mean_abs"],
        Doc("standard deviation of all entries; what keeps the norm, or the mean, of the kept"),
    ] = "std",
    form: Annotated[
        Literal["rice", "masks"], Doc("coded gaps, the smallest; or two masks of bits")
    ] = "rice",
) -> Encoded | None:
    """Keep the signs of the largest entries of the whole model, times one scale.

    The k-th largest magnitude and the standard deviation (with n - 1) are those of all differences
    together, embeddings and norms included. Exactly `floor(keep * entries)` are kept; of equal
    magnitudes the first, by tensor and flat index. Larger `alpha` suits small models: the paper
    tunes it from 0.5 to 10. With `scale: l2` it is the form of T-Switch (arXiv 2412.00054).
    """
    found = delta.found
    if found is None:
        raise DataError("there is no survey of the model", delta.name)
    size = alpha * {"std": found.std, "l2": found.l2, "mean_abs": found.mean_abs}[scale]
    if form == "masks":
        return masks.encoded(delta.values, found.threshold, delta.ties, scale=size)
    return rice.encoded(
        delta.values,
        found.threshold,
        delta.kept,
        delta.ties,
        scale=size,
        signs=True,
        squares=delta.squares,
    )

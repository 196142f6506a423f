"""LOT Merging: RegMean on task vectors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._spec import Doc, Vector, preset
from mergekit_lite.ops._spectral import Embeddings


@preset(
    title="Layer-wise optimal task vector merging",
    paper="Sun et al. 2025, arXiv 2505.23859",
    calibration=True,
    vectors=[
        Vector(
            [[[4, 2], [0, 0]], [[0, 0], [4, 2]]],
            [[3, 0], [1, 0]],
            {"file": {"a": "math.safetensors", "b": "code.safetensors"}},
            calibration=[[[3, 0], [0, 0]], [[1, 0], [0, 0]]],
            source="an input never seen stays as in the base, by hand",
        ),
    ],
)
def lot(
    *,
    file: Annotated[str, Doc("statistic file of the expert"), "per_expert"],
    input: Annotated[
        Literal["last", "first"],
        Doc("dimension of the weight that meets the input: `first` in GPT-2"),
    ] = "last",
    embeddings: Embeddings = False,
) -> list[tuple[str, dict[str, Any]]]:
    """Find the change to each linear layer that answers the experts' inputs as they do.

    Stands for `regmean` with `target: delta` and `solver: pinv`, and takes the same files. Where
    all Grams together are invertible it is the same as RegMean; along inputs that nobody saw it
    leaves the base alone. 16 to 64 unlabelled samples an expert are enough, say the authors.
    """
    chosen = {"target": "delta", "solver": "pinv", "input": input, "embeddings": embeddings}
    return [("regmean", {"file": file, **chosen})]

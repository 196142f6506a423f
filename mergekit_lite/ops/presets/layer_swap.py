"""Take the outer layers from one expert and the middle from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, ExpertName, Range, Vector, preset


def check(params: Mapping[str, Any]) -> list[str]:
    """Swapping an expert with itself is a slip of the pen."""
    same = params["from"] == params["into"]
    return ["`from` and `into` name the same expert"] if same else []


def _vector(layer: int | None, expect: list[float], source: str, outer: str = "from") -> Vector:
    """Llama-3.1-8B in the paper: 32 layers, 5 at the bottom and 2 at the top."""
    params = {"from": "a", "into": "b", "bottom": 5, "top": 2, "outer": outer}
    return Vector([[2, 0], [4, 1]], expect, params, layer=layer, layers=32, source=source)


@preset(
    title="Layer swapping",
    paper="Bandarkar et al. 2025, arXiv 2410.01335",
    space="weight",
    experts=(2, None),
    check=check,
    vectors=[
        _vector(0, [2, 0], "the paper's setting: layers 0..4 from A"),
        _vector(4, [2, 0], "the paper's setting: layers 0..4 from A"),
        _vector(5, [3, 0.5], "the paper's setting: layer 5 is half and half"),
        _vector(6, [4, 1], "the paper's setting: the rest from B"),
        _vector(28, [4, 1], "the paper's setting: the rest from B"),
        _vector(29, [3, 0.5], "the paper's setting: layer 29 is half and half"),
        _vector(30, [2, 0], "the paper's setting: layers 30 and 31 from A"),
        _vector(None, [2, 0], "outside the layers: from A unless said otherwise"),
        _vector(None, [3, 0.5], "outside the layers: mean", "mean"),
        _vector(None, [0, 0], "outside the layers: base", "base"),
    ],
)
def layer_swap(
    *,
    place: Place,
    from_: Annotated[ExpertName, Doc("expert whose outer layers are taken (the language)")],
    into: Annotated[ExpertName, Doc("expert that keeps the middle layers (the task)")],
    bottom: Annotated[
        int, Range(at_least=0), Doc("how many layers at the input side come from `from`")
    ],
    top: Annotated[
        int, Range(at_least=0), Doc("how many layers at the output side come from `from`")
    ],
    transition_bottom: Annotated[
        int, Range(at_least=0), Doc("layers above the bottom ones that are half and half")
    ] = 1,
    transition_top: Annotated[
        int, Range(at_least=0), Doc("layers below the top ones that are half and half")
    ] = 1,
    outer: Annotated[
        Literal["from", "into", "mean", "base"],
        Doc("what embeddings, final norm and head are: of one expert, both, or the base"),
    ] = "from",
) -> list[tuple[str, dict[str, Any]]]:
    """Take the outermost layers from one expert and the others from a second one.

    Of L layers 0 .. bottom-1 and L-top .. L-1 are taken from `from`; `transition_bottom` layers
    next to the lower ones and `transition_top` next to the upper ones are the mean of both; the
    rest is taken from `into`. A side without swapped layers has no transition.

    Raises:
        RecipeError: more layers are asked for than the model has.
    """
    low = bottom + (transition_bottom if bottom else 0)
    high = place.layers - top - (transition_top if top else 0)
    if low > high:
        raise RecipeError(
            f"layer_swap covers {low} layers from below and {place.layers - high} from above, "
            f"but the model has {place.layers}",
            "layer_swap",
            "lower `bottom`, `top` or the transitions",
        )
    mean = [("linear", {"weights": {from_: 0.5, into: 0.5}, "normalize": False})]
    if place.layer is None:
        named = {"from": from_, "into": into, "base": "base"}
        return mean if outer == "mean" else [("take", {"source": named[outer]})]
    if place.layer < bottom or place.layer >= place.layers - top:
        return [("take", {"source": from_})]
    if low <= place.layer < high:
        return [("take", {"source": into})]
    return mean

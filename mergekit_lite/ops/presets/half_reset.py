"""Half fine-tuning after the fact: set about half of a fine-tune back to its base."""

from __future__ import annotations

from typing import Annotated, Any

from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._spec import Doc, ExpertName, Vector, preset

SETS = (
    (
        ("q_proj", "wq", "query", "q"),
        ("k_proj", "wk", "key", "k"),
        ("v_proj", "wv", "value", "v"),
        ("o_proj", "out_proj", "wo", "o"),
    ),
    (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")),
    (
        ("input_layernorm", "ln_1", "norm1", "attention_norm"),
        ("post_attention_layernorm", "ln_2", "norm2", "ffn_norm"),
    ),
    (("pre_feedforward_layernorm",), ("post_feedforward_layernorm",)),
    (("q_norm",), ("k_norm",)),
)
"""Modules of one layer of which a half is reset, each by its names in several architectures."""
MEMBER = {
    name: (group, number) for group in SETS for number, names in enumerate(group) for name in names
}


def is_reset(place: Place) -> bool:
    """Return whether a tensor inside the layers is set back; a bias goes with its weight."""
    path = place.name.removesuffix(".weight").removesuffix(".bias")
    parent, _, module = path.rpartition(".")
    if module not in MEMBER:
        return bool(_draw(place, path) & 1)
    group, number = MEMBER[module]
    drawn = [_draw(place, f"{parent}\0{i}") for i in range(len(group))]
    count = len(group) // 2 + (len(group) % 2 and _takes_more(place, parent))
    return number in sorted(range(len(group)), key=drawn.__getitem__)[:count]


def _takes_more(place: Place, parent: str) -> int:
    """Return 1 in one layer of each two, where two of three modules are reset, else 0."""
    layer = place.layer or 0
    path = parent.replace(f".{layer}.", ".*.", 1)
    return (_draw(place, f"{path}\0{layer // 2}") + layer) & 1


def _draw(place: Place, what: str) -> int:
    return random_key(place.key, "half_reset", "", what)


@preset(
    title="Half reset (HFT at file level)",
    paper="Hui et al. 2024, arXiv 2404.18466",
    space="weight",
    experts=(1, None),
    vectors=[
        Vector([[1, -2]], [1, -2], {"source": "a"}, source="outside the layers: the fine-tune's"),
    ],
)
def half_reset(
    *,
    place: Place,
    source: Annotated[ExpertName, Doc("the fine-tune")],
) -> list[tuple[str, dict[str, Any]]]:
    """Set half of a fine-tune's tensors back to the base, to remember what fine-tuning forgot.

    In each layer two of the four attention matrices are the base's again, of the three matrices of
    the MLP two in half of the layers and one in the others, and one of two norms; modules with
    other names are drawn one by one. Embeddings, final norm and head stay the fine-tune's. Another
    `seed` of the recipe resets another half. Each tensor is copied whole.
    """
    reset = place.layer is not None and is_reset(place)
    return [("take", {"source": "base" if reset else source})]

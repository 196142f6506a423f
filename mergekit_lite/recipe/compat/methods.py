"""The merge methods of mergekit 0.1.5 and what they are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mergekit_lite.recipe.marks import Node

Scope = Literal["shared", "model"]
"""Whether a parameter is one for the tensor, or one for each model that is merged."""
BaseUse = Literal["needed", "origin", "input"]
"""What `base_model` is to a method: needed; what differences are taken from, if it is given; or
one more input, if it is given."""


@dataclass(frozen=True)
class Setting:
    """One parameter of a mergekit method.

    Attributes:
        scope: what it is given for.
        key: the parameter it sets, as a rule's `set` names it; "" where it changes no number.
        words: what true and false are called here; None takes the value as it is.
        required: mergekit has no default for it.
        refused: why `true` cannot be had here, "" where it can.
    """

    scope: Scope
    key: str = ""
    words: Mapping[bool, Any] | None = None
    required: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Method:
    """One merge method of mergekit.

    Attributes:
        chain: our ops or preset; keys of settings name the op where there are several.
        base: what `base_model` is to it.
        settings: its parameters.
        experts: fewest and most models that are merged; None is "no upper limit".
        finish: puts together what mergekit has several parameters for.
    """

    chain: tuple[str, ...]
    base: BaseUse
    settings: Mapping[str, Setting] = field(default_factory=dict)
    experts: tuple[int, int | None] = (1, None)
    finish: Callable[[dict[str, Node]], None] | None = None


_BOOLEANS = {True: True, False: False}
_NOTHING = Setting("shared", words=_BOOLEANS)


def _shared(key: str, *, required: bool = False) -> Setting:
    return Setting("shared", key, required=required)


def _flag(key: str, yes: Any = True, no: Any = False) -> Setting:
    return Setting("shared", key, {True: yes, False: no})


_NO_NORM = Setting(
    "shared", words=_BOOLEANS, refused="only the random methods rescale what they keep"
)


def _task_vectors(*chain: str, elects: bool, sparse: str = "", own: tuple[str, ...] = ()) -> Method:
    """Return a method of the family of task arithmetic.

    Args:
        chain: our ops.
        elects: a sign is elected for each entry.
        sparse: what stands before the keys of its sparsification.
        own: parameters of that besides `density`.
    """
    combine = f"{chain[-1]}." if len(chain) > 1 else ""
    return Method(
        chain,
        "needed",
        {
            "weight": Setting("model", "weight", required=True),
            "density": Setting("model", f"{sparse}density"),
            **{name: Setting("model", sparse + name) for name in own},
            "normalize": _flag("agg", "mean", "sum") if elects else _flag(f"{combine}normalize"),
            "lambda": _shared(f"{combine}lambda"),
            "int8_mask": _NOTHING,
            "rescale": _NO_NORM,
        },
    )


def _random(method: Method) -> Method:
    """Return the method with a choice of rescaling what it keeps to the norm of the whole."""
    return replace(method, settings={**method.settings, "rescale": _flag("rescale", "l1", "none")})


def _unit(params: dict[str, Node]) -> None:
    """Say in one word what `nuslerp_flatten` and `nuslerp_row_wise` say in two."""
    whole, first = params.pop("flatten", None), params.pop("row_wise", None)
    if whole is not None and not whole.value:
        # mergekit's rows are vectors over the first dimension, ours over the last.
        turned = first is not None and first.value
        params["unit"] = whole.with_value("column" if turned else "row")


_ADDED = _task_vectors("task_arithmetic", elects=False)

METHODS: Mapping[str, Method] = {
    "linear": Method(
        ("linear",),
        "input",
        {"weight": Setting("model", "weight", required=True), "normalize": _flag("normalize")},
    ),
    # It drops nothing, so neither a density nor a norm to restore changes anything.
    "task_arithmetic": replace(
        _ADDED,
        settings={**_ADDED.settings, "density": Setting("model"), "rescale": _NOTHING},
    ),
    "ties": _task_vectors("ties", elects=True),
    "dare_ties": _random(_task_vectors("dare_ties", elects=True)),
    "dare_linear": _random(_task_vectors("dare_linear", elects=False)),
    "breadcrumbs": _task_vectors(
        "breadcrumbs", "task_arithmetic", elects=False, sparse="breadcrumbs.", own=("gamma",)
    ),
    "breadcrumbs_ties": _task_vectors("breadcrumbs_ties", elects=True, own=("gamma",)),
    "della": _random(_task_vectors("della", elects=True, own=("epsilon",))),
    "della_linear": _random(_task_vectors("della_linear", elects=False, own=("epsilon",))),
    "slerp": Method(("slerp",), "needed", {"t": _shared("t", required=True)}, (1, 1)),
    "nearswap": Method(("nearswap",), "needed", {"t": _shared("t", required=True)}, (1, 1)),
    "arcee_fusion": Method(("arcee_fusion",), "needed", experts=(1, 1)),
    "passthrough": Method(("passthrough",), "input", {"scale": Setting("model", "scale")}, (1, 1)),
    "model_stock": Method(
        ("model_stock",), "needed", {"filter_wise": _flag("filter_wise")}, (2, None)
    ),
    "sce": Method(
        ("sce",), "needed", {"select_topk": _shared("select_topk"), "int8_mask": _NOTHING}
    ),
    "ram": Method(("ram",), "needed", {"epsilon": _shared("epsilon")}),
    "ramplus_tl": Method(
        ("ramplus",),
        "needed",
        {"epsilon": _shared("epsilon"), "r": _shared("r"), "alpha": _shared("alpha")},
    ),
    "nuslerp": Method(
        ("nuslerp",),
        "origin",
        {
            "weight": Setting("model", "weight", required=True),
            "nuslerp_flatten": _flag("flatten"),
            "nuslerp_row_wise": _flag("row_wise"),
        },
        (2, 2),
        _unit,
    ),
    "multislerp": Method(
        ("multislerp",),
        "origin",
        {
            "weight": Setting("model", "weight", required=True),
            "normalize_weights": _flag("normalize"),
            "eps": Setting("shared"),
        },
    ),
    "karcher": Method(
        ("karcher",), "input", {"max_iter": _shared("max_iter"), "tol": _shared("tol")}
    ),
}
"""By mergekit's name."""

FORMER = {
    "embed_slerp": "earlier versions averaged embeddings on the sphere with it",
}
"""Parameters that old recipes carry and mergekit 0.1.5 reads past."""


def all_settings() -> frozenset[str]:
    """Return the names of the parameters of all methods."""
    return frozenset(name for method in METHODS.values() for name in method.settings)

"""The merges that are compared: for each, the same request in our words and in the peer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

EXPERTS = ("a", "b", "c")
Recipe = dict[str, Any]
Agreement = Literal["bytes", "values", "random", "apart"]


@dataclass(frozen=True)
class Goal:
    """What the project set out to reach: times faster than the peer, times the floor."""

    faster: float
    floor: float


@dataclass(frozen=True)
class Method:
    """One merge, asked of both programs.

    Attributes:
        name: as the table calls it.
        inputs: the models whose every byte it must read.
        ours: our recipe for the merge the peer makes.
        own: our recipe with our own defaults, where they give another result.
        peer: the peer's recipe.
        agreement: `bytes` copies; `values` equal but for rounding; `random` alike in statistics;
            `apart` where the peer has a defect that we do not share (docs/mergekit-differences.md),
            or where its rounding to bf16 on the way outweighs the change.
        goal: what the project set out to reach, for the methods of the engine.
    """

    name: str
    inputs: tuple[str, ...]
    ours: Recipe
    peer: Recipe
    agreement: Agreement
    goal: Goal | None = None
    own: Recipe | None = None


def _ours(models: Path, experts: Mapping[str, float | None], **rest: Any) -> Recipe:
    return {
        "schema_version": 1,
        "base": str(models / "base"),
        "experts": {
            name: {"model": str(models / name)} | ({} if weight is None else {"weight": weight})
            for name, weight in experts.items()
        },
        "output": {"dtype": "bfloat16"},
        **rest,
    }


def _peer(
    models: Path, method: str, weights: Mapping[str, float] | None, dtype: str, **parameters: Any
) -> Recipe:
    members = [
        {
            "model": str(models / name),
            "parameters": {**({"weight": weights[name]} if weights else {}), **parameters},
        }
        for name in EXPERTS
    ]
    return {
        "merge_method": method,
        "base_model": str(models / "base"),
        "models": members,
        "dtype": dtype,
        "out_dtype": "bfloat16",
    }


def methods(models: Path, layers: int, dtype: str) -> dict[str, Method]:
    """Return every compared merge by name.

    Args:
        models: folder that holds `base`, `a`, `b` and `c`.
        layers: number of layers of each.
        dtype: in which the peer is asked to compute.
    """
    shares = {"a": 0.4, "b": 0.3, "c": 0.3}
    ones = dict.fromkeys(EXPERTS, 1.0)
    everything = ("base", *EXPERTS)
    half = layers // 2

    linear = _peer(models, "linear", shares, dtype)
    del linear["base_model"]
    slerp = _peer(models, "slerp", None, dtype)
    slerp |= {
        "base_model": str(models / "a"),
        "models": [{"model": str(models / name)} for name in ("a", "b")],
        "parameters": {"t": 0.5},
    }
    passthrough = {
        "merge_method": "passthrough",
        "models": [{"model": str(models / "a")}],
        "dtype": dtype,
        "out_dtype": "bfloat16",
    }
    swap = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(models / name), "layer_range": list(span)}]}
            for name, span in (("a", (0, half)), ("b", (half, layers)))
        ],
        "dtype": dtype,
        "out_dtype": "bfloat16",
    }
    ties: dict[str, Any] = {"ties": {"density": 0.2}}
    dare: dict[str, Any] = {"dare_ties": {"density": 0.2}}
    crumbs: list[dict[str, Any]] = [
        {"breadcrumbs": {"density": 0.9, "gamma": 0.01}},
        {"task_arithmetic": {}},
    ]
    spherical: dict[str, Any] = {"slerp": {"t": 0.5}}
    as_peer = {"compat": "mergekit"}
    found = [
        Method(
            "linear",
            EXPERTS,
            _ours(models, shares, steps=[{"linear": {}}]),
            linear,
            "values",
            Goal(9, 2),
        ),
        Method(
            "task_arithmetic",
            everything,
            _ours(models, shares, steps=[{"task_arithmetic": {}}]),
            _peer(models, "task_arithmetic", shares, dtype),
            "values",
            Goal(9, 2),
        ),
        Method(
            "ties",
            everything,
            _ours(models, ones, steps=[ties], **as_peer),
            _peer(models, "ties", ones, dtype, density=0.2),
            "values",
            Goal(35, 3),
            own=_ours(models, ones, steps=[ties]),
        ),
        Method(
            "dare_ties",
            everything,
            _ours(models, ones, steps=[dare], seed=1, **as_peer),
            _peer(models, "dare_ties", ones, dtype, density=0.2),
            "random",
            Goal(15, 3),
            own=_ours(models, ones, steps=[dare], seed=1),
        ),
        Method(
            "breadcrumbs",
            everything,
            _ours(models, shares, steps=crumbs, **as_peer),
            _peer(models, "breadcrumbs", shares, dtype, density=0.9, gamma=0.01),
            "values",
            Goal(35, 3),
            own=_ours(models, shares, steps=crumbs),
        ),
        Method(
            "slerp",
            ("a", "b"),
            _ours(models, dict.fromkeys(("a", "b")), steps=[spherical], **as_peer),
            slerp,
            "values",
            Goal(9, 2.5),
            own=_ours(models, dict.fromkeys(("a", "b")), steps=[spherical]),
        ),
        Method(
            "passthrough",
            ("a",),
            _ours(models, {"a": None}, steps=[{"passthrough": {}}]),
            passthrough,
            "bytes",
            Goal(8, 1.5),
        ),
        Method(
            "layer_swap",
            ("a",),  # half of each of two models of equal size
            _ours(
                models,
                {"a": None, "b": None},
                steps=[{"take": {"source": "a"}}],
                rules=[
                    {"match": {"layers": f"{half}-{layers - 1}"}, "take": "b"},
                    {"match": "model.norm.weight", "take": "b"},
                    {"match": "lm_head.weight", "take": "b"},
                ],
            ),
            swap,
            "bytes",
            Goal(8, 1.5),
        ),
    ]
    found += [
        Method(name, inputs, recipe, recipe, agreement)
        for name, inputs, recipe, agreement in _as_the_peer_says(models, dtype)
    ]
    return {method.name: method for method in found}


def _as_the_peer_says(
    models: Path, dtype: str
) -> list[tuple[str, tuple[str, ...], Recipe, Agreement]]:
    """Return the peer's other methods: its own recipe is given to both programs as it is."""
    ones = dict.fromkeys(EXPERTS, 1.0)
    every = ("base", *EXPERTS)

    def each(method: str, **parameters: Any) -> Recipe:
        return _peer(models, method, ones, dtype, **parameters)

    def whole(method: str, names: tuple[str, ...], **parameters: Any) -> Recipe:
        """Return a recipe whose parameters are of the merge, not of its inputs."""
        recipe = _peer(models, method, None, dtype)
        recipe["models"] = [{"model": str(models / name)} for name in names]
        return recipe | ({"parameters": parameters} if parameters else {})

    spheres = _peer(models, "nuslerp", ones, dtype)
    spheres["models"] = spheres["models"][:2]
    del spheres["base_model"]
    return [
        ("dare_linear", every, each("dare_linear", density=0.2), "random"),
        ("breadcrumbs_ties", every, each("breadcrumbs_ties", density=0.9, gamma=0.01), "values"),
        ("della", every, each("della", density=0.5, epsilon=0.1), "random"),
        ("della_linear", every, each("della_linear", density=0.5, epsilon=0.1), "random"),
        ("sce", every, whole("sce", EXPERTS, select_topk=0.5), "apart"),
        ("ram", every, whole("ram", EXPERTS), "values"),
        ("ramplus_tl", every, whole("ramplus_tl", EXPERTS), "values"),
        ("model_stock", every, whole("model_stock", EXPERTS), "apart"),
        ("multislerp", EXPERTS, each("multislerp"), "values"),
        ("karcher", EXPERTS, whole("karcher", EXPERTS), "apart"),
        ("nuslerp", ("a", "b"), spheres, "random"),
        ("nearswap", ("base", "a"), whole("nearswap", ("a",), t=0.001), "values"),
        ("arcee_fusion", ("base", "a"), whole("arcee_fusion", ("a",)), "apart"),
    ]

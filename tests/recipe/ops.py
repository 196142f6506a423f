"""Throw-away ops with the names and shapes of the real ones, so that recipes can be judged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops import _spec
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import (
    Doc,
    ExpertName,
    OpSpec,
    Range,
    combine,
    post,
    preset,
    transform,
)

Density = Annotated[float, Range(above=0, at_most=1), Doc("Share of the entries kept.")]


def register() -> dict[str, OpSpec]:
    """Register the ops into whatever registry is in force and return their specs by name."""

    @transform(title="Magnitude", paper="")
    def magnitude(delta: Any, *, density: Density, cut: Any) -> Any:
        """Keep the largest entries."""

    @transform(title="DARE", paper="", random=True, compat={"mergekit": {"rescale": "l1"}})
    def dare(
        delta: Any,
        *,
        density: Density = 0.5,
        rescale: Literal["inv_density", "l1", "none"] = "inv_density",
        place: Place,
    ) -> Any:
        """Drop entries at random."""

    @combine(title="Linear", paper="", space="weight", commutative=True)
    def linear(inputs: Any, *, weights: Any, normalize: bool = True) -> Any:
        """Average whole weights."""

    @combine(title="Task arithmetic", paper="", commutative=True)
    def task_arithmetic(inputs: Any, *, weights: Any) -> Any:
        """Add the weighted deltas."""

    @combine(title="Sign consensus", paper="", compat={"mergekit": {"elect": "count"}})
    def sign_consensus(
        inputs: Any, *, weights: Any, elect: Literal["mass", "count"] = "mass"
    ) -> Any:
        """Keep what agrees."""

    @combine(title="Slerp", paper="", space="weight", experts=(2, 2))
    def slerp(inputs: Any, *, weights: Any, t: Annotated[float, Range(0, 1)] = 0.5) -> Any:
        """Walk the arc."""

    @combine(title="Take", paper="", space="weight", experts=(0, None))
    def take(inputs: Any, *, expert: ExpertName) -> Any:
        """Take one model's weights."""

    @combine(title="Median", paper="")
    def median(
        inputs: Any, *, temper: Annotated[float, "per_expert"] = 1.0, rounds: int = 3
    ) -> Any:
        """A combine with a value for each expert."""

    @post(title="Scale", paper="")
    def scale(merged: Any, *, lambda_: Annotated[float, Doc("Factor.")]) -> Any:
        """Multiply the merged delta."""

    @preset(title="TIES", paper="")
    def ties(
        *,
        density: Annotated[Density, "per_expert"] = 0.2,
        elect: Literal["mass", "count"] = "mass",
        lambda_: float = 1.0,
    ) -> list[tuple[str, dict[str, Any]]]:
        """Trim, elect, merge."""
        return [
            ("magnitude", {"density": density}),
            ("sign_consensus", {"elect": elect}),
            ("scale", {"lambda": lambda_}),
        ]

    @preset(title="DARE TIES", paper="")
    def dare_ties(*, density: Density = 0.5) -> list[tuple[str, dict[str, Any]]]:
        """Random drops, then elect."""
        return [("dare", {"density": density}), ("sign_consensus", {})]

    @preset(title="Keep", paper="")
    def sparse_ties(
        *, drop: Annotated[float, Range(0, below=1), "per_expert"] = 0.8
    ) -> list[tuple[str, dict[str, Any]]]:
        """A preset that computes with a per-expert value and names another preset."""
        if drop > 0.99:
            raise ValueError("nothing would be kept")
        return [("ties", {"density": 1 - drop})]

    @preset(title="Layer swap", paper="")
    def layer_swap(
        *, bottom: ExpertName, top: ExpertName, at: int, place: Place
    ) -> list[tuple[str, dict[str, Any]]]:
        """Lower layers from one, upper from another."""
        lower = place.layer is not None and place.layer < at
        return [("take", {"expert": bottom if lower else top})]

    return dict(_spec.REGISTRY)

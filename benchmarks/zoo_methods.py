"""Merges of the zoo's three adapters by every method: what `scores.py` compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOMAINS = ("german", "french", "dictionary")
REFERENCES = ("zoo:smol", *(f"zoo:smol-{name}" for name in DOMAINS))
STATISTICS = "{statistics}"
"""Stands for the folder that holds what was measured on each domain's validation text."""


@dataclass(frozen=True)
class Method:
    """One merge of the zoo.

    Attributes:
        steps: the chain.
        experts: which adapters.
        is_scaled: the merged difference can be scaled, and how much is chosen on validation text.
    """

    steps: Sequence[Any]
    experts: tuple[str, ...] = DOMAINS
    is_scaled: bool = True

    def recipe(
        self, scale: float = 1.0, *, statistics: Path = Path(), dtype: str | None = None
    ) -> dict[str, Any]:
        """Return the recipe.

        Args:
            scale: of the merged difference, where it can be scaled.
            statistics: folder with `german/gram` and so on, where the method needs them.
            dtype: of the output; by default the base's.
        """
        scaled = [{"scale": {"lambda": scale}}] if self.is_scaled and scale != 1 else []
        return {
            "schema_version": 1,
            "base": "zoo:smol",
            "experts": {name: {"lora": f"zoo:smol-{name}"} for name in self.experts},
            "steps": [*(_filled(step, statistics) for step in self.steps), *scaled],
            **({"output": {"dtype": dtype}} if dtype else {}),
        }


def _filled(value: Any, statistics: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(one, statistics) for key, one in value.items()}
    return value.replace(STATISTICS, str(statistics)) if isinstance(value, str) else value


GRAMS = {name: f"{STATISTICS}/{name}/gram" for name in DOMAINS}
TWO = ("german", "french")
METHODS: Mapping[str, Method] = {
    "linear": Method(["linear"], is_scaled=False),
    "task_arithmetic": Method(["task_arithmetic"]),
    "task_arithmetic+lines": Method(["task_arithmetic", "lines"]),
    "magmax": Method(["magmax"]),
    "ties": Method(["ties"]),
    "ties-model": Method([{"ties": {"scope": "model"}}]),
    "ties-std": Method([{"ties": {"trim": "std"}}]),
    "ties-norm": Method([{"ties": {"trim": "norm"}}]),
    "dare_linear": Method(["dare_linear"]),
    "dare_ties": Method(["dare_ties"]),
    "breadcrumbs": Method(["breadcrumbs", "task_arithmetic"]),
    "breadcrumbs_ties": Method(["breadcrumbs_ties"]),
    "della": Method(["della"]),
    "della_linear": Method(["della_linear"]),
    "magprune": Method(["magprune", "task_arithmetic"]),
    "task_arithmetic+consensus_mask": Method(["task_arithmetic", "consensus_mask"]),
    "sce": Method(["sce"]),
    "ram": Method(["ram"]),
    "ramplus": Method(["ramplus"]),
    "consensus": Method(["consensus"]),
    "consensus_ties": Method(["consensus_ties"]),
    "tatr": Method(["tatr"]),
    "pcb": Method(["pcb"]),
    "localize_and_stitch": Method(["localize_and_stitch"]),
    "model_stock": Method(["model_stock"], is_scaled=False),
    "multislerp": Method(["multislerp"], is_scaled=False),
    "karcher": Method(["karcher"], is_scaled=False),
    "tsv_merge": Method(["tsv_merge"]),
    "iso_c": Method(["iso_c"]),
    "iso_cts": Method(["iso_cts"]),
    "cart": Method(["cart"]),
    "task_arithmetic+svc": Method(["task_arithmetic", "svc"]),
    "sign_consensus+svc": Method(["sign_consensus", "svc"]),
    # Its default is 300 steps of Adam for each matrix.
    "wudi-closed-form": Method([{"wudi": {"closed_form": True}}]),
    "ace": Method(["ace"]),
    "slerp": Method([{"slerp": {"t": 0.5}}], TWO, is_scaled=False),
    "nuslerp": Method(["nuslerp"], TWO, is_scaled=False),
    "nearswap": Method([{"nearswap": {"t": 0.001}}], ("german",), is_scaled=False),
    "arcee_fusion": Method(["arcee_fusion"], ("german",), is_scaled=False),
    "mediator_split": Method([{"mediator_split": {"keep": "german"}}], TWO, is_scaled=False),
    "layer_swap": Method(
        [{"layer_swap": {"from": "german", "into": "dictionary", "bottom": 8, "top": 4}}],
        ("german", "dictionary"),
        is_scaled=False,
    ),
    "bspline_blend": Method(
        [{"bspline_blend": {"source": "german", "control_points": [0, 0.2, 1, 1, 0.6, 0.2]}}],
        ("german",),
        is_scaled=False,
    ),
    "half_reset": Method([{"half_reset": {"source": "german"}}], ("german",), is_scaled=False),
}
"""Every method that needs no data, by the name that tables have for it."""

MEASURED: Mapping[str, Method] = {
    "regmean": Method([{"regmean": {"file": GRAMS}}]),
    "lot": Method([{"lot": {"file": GRAMS}}]),
}
"""Methods that need the Gram matrices of each domain's text."""

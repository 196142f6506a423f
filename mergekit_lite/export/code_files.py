"""The code of a routed model that no stock class computes, beside its weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from mergekit_lite.plan.types import Plan

FILES = ("configuration_routed.py", "modeling_routed.py")
_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def write_code(plan: Plan, folder: Path) -> list[str]:
    """Write the files that `auto_map` of the output's config names; return their names.

    They need transformers and torch alone. The class is that of the base, with experts in place of
    feed-forward layers.

    Args:
        plan: what was run.
        folder: of the output, which exists.
    """
    if plan.moe.get("target") != "routed":
        return []
    donor = str(plan.config["model_type"]).removeprefix("routed_")
    for file in FILES:
        text = (resources.files("mergekit_lite.export") / "code" / file).read_text("utf-8")
        text = text.replace("Llama", _CLASSES[donor]).replace("routed_llama", f"routed_{donor}")
        (folder / file).write_text(text, encoding="utf-8")
    return list(FILES)

"""The code of a routed model that no stock class computes, beside its weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from mergekit_lite.plan.types import Plan

TARGETS = ("routed", "lora_moe")
"""Kinds of models that no stock class computes."""
_CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma",
    "gemma2": "Gemma2", "olmo2": "Olmo2", "phi3": "Phi3", "granite": "Granite",
}  # fmt: skip


def write_code(plan: Plan, folder: Path) -> list[str]:
    """Write the files that `auto_map` of the output's config names; return their names.

    They need transformers and torch alone. The class is that of the base, with experts in place of
    feed-forward layers, or adapters in linear ones.

    Args:
        plan: what was run.
        folder: of the output, which exists.
    """
    target = plan.moe.get("target")
    if target not in TARGETS:
        return []
    donor = str(plan.config["model_type"]).removeprefix(f"{target}_")
    files = [f"configuration_{target}.py", f"modeling_{target}.py"]
    for file in files:
        text = (resources.files("mergekit_lite.export") / "code" / file).read_text("utf-8")
        text = text.replace("Llama", _CLASSES[donor])
        text = text.replace(f"{target}_llama", f"{target}_{donor}")
        (folder / file).write_text(text, encoding="utf-8")
    return files

"""Chat templates, wherever a model's folder keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergekit_lite.tokenizer.files import SETTINGS, TEMPLATE, TEMPLATE_JSON, read_object


def read_template(folder: Path) -> str | None:
    """Return a model's chat template, None where it has none.

    Looked for in `chat_template.jinja`, then `chat_template.json`, then in
    `tokenizer_config.json`, where older models keep it; of several named ones, `default`.
    """
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    for name in (TEMPLATE_JSON, SETTINGS):
        found = (read_object(folder / name) or {}).get("chat_template")
        if isinstance(found, list):
            named = {n["name"]: n.get("template") for n in found if isinstance(n, Mapping)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def same_template(left: str | None, right: str | None) -> bool:
    """Return whether two templates differ in nothing but blank space at their ends."""
    return (left or "").strip() == (right or "").strip()

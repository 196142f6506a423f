"""The output's tokenizer files: an input's as they are, or a union written anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import DataError
from mergekit_lite.export.companions import ROUTED_FILES, copy_companions
from mergekit_lite.export.config import edit_config
from mergekit_lite.folders import write_json
from mergekit_lite.plan.types import Plan
from mergekit_lite.plan.vocabulary.ids import GENERATION
from mergekit_lite.tokenizer.document import decoded, edited
from mergekit_lite.tokenizer.files import (
    ADDED,
    MERGES,
    MORE_TEMPLATES,
    PIECES,
    SETTINGS,
    TEMPLATE,
    TOKENIZER_JSON,
    VOCAB_JSON,
    VOCAB_TEXT,
    is_template_file,
    is_tokenizer_file,
    read_object,
)
from mergekit_lite.tokenizer.read import regular

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


def write_companions(plan: Plan, models: Mapping[str, Model], folder: Path) -> list[str]:
    """Write every file of the output that is neither weights nor config; return their names.

    All are the base's, byte for byte, but for what the plan says of tokenizer and chat template.

    Args:
        plan: its `tokenizer` says whose tokenizer and template the output has.
        models: the plan's inputs.
        folder: folder of the output, which exists.
    """
    base = models["base"]
    how = plan.tokenizer
    owner = models[how.get("source", "base")]
    gone = ROUTED_FILES if "dense" in plan.moe else frozenset()
    kept = [path for path in base.companions if path.parts[0] not in gone]
    written = set(copy_companions(base.root, kept, folder))
    if owner is not base:
        written -= _remove(folder, [name for name in written if is_tokenizer_file(Path(name))])
        own = [path for path in owner.companions if is_tokenizer_file(path)]
        written |= set(copy_companions(owner.root, own, folder))
    if "additions" in how:
        written |= _write_union(owner.root, how["additions"], folder)
        written -= {name for name in written if not (folder / name).exists()}
    if "template" in how:
        written -= _write_template(how["template"], base, models, folder, written)
        written.add(TEMPLATE)
    if changes := how.get("generation"):
        _edit(folder / GENERATION, changes)
    return sorted(written)


def _remove(folder: Path, names: Sequence[str]) -> set[str]:
    for name in names:
        (folder / name).unlink()
    return set(names)


def _write_union(root: Path, additions: Mapping[str, Any], folder: Path) -> set[str]:
    """Write the united tokenizer, and the older files beside it that repeat its vocabulary."""
    raw = (root / TOKENIZER_JSON).read_bytes()
    if sha256(raw).hexdigest() != additions["sha256"]:
        raise DataError(
            f"`{root / TOKENIZER_JSON}` is no longer what it was when the merge was planned",
            hint="plan again, and leave the inputs alone until the merge is done",
        )
    text = edited(decoded(raw), additions["edits"])
    (folder / TOKENIZER_JSON).write_bytes(text.encode("utf-8", "surrogatepass"))
    if (settings := read_object(folder / SETTINGS)) is not None:
        listed = settings.get("added_tokens_decoder")
        if isinstance(listed, dict):
            for entry in additions["entries"]:
                kept = {key: value for key, value in entry.items() if key != "id"}
                listed[str(entry["id"])] = kept
            write_json(folder / SETTINGS, settings)
    if (added := read_object(folder / ADDED)) is not None:
        write_json(
            folder / ADDED,
            {**added, **{entry["content"]: entry["id"] for entry in additions["entries"]}},
        )
    if additions["pieces"]:
        _write_vocabulary(text, folder)
    return {TOKENIZER_JSON}


def _write_vocabulary(text: str, folder: Path) -> None:
    """Write the files of older tokenizers where they are there; a binary one cannot be."""
    for name in PIECES:
        (folder / name).unlink(missing_ok=True)
    if not any((folder / name).exists() for name in (VOCAB_JSON, VOCAB_TEXT, MERGES)):
        return
    united = json.loads(text)
    pieces = regular(united)
    if (folder / VOCAB_JSON).exists():
        write_json(folder / VOCAB_JSON, pieces)
    if (folder / VOCAB_TEXT).exists():
        lines = sorted(pieces, key=lambda token: pieces[token])
        (folder / VOCAB_TEXT).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if (folder / MERGES).exists():
        merges = united["model"].get("merges") or ()
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        text = "#version: 0.2\n" + "".join(f"{line}\n" for line in lines)
        (folder / MERGES).write_text(text, encoding="utf-8")


def _write_template(
    template: Mapping[str, Any],
    base: Model,
    models: Mapping[str, Model],
    folder: Path,
    written: set[str],
) -> set[str]:
    """Write the chosen chat template; return the files that held another and are gone."""
    gone = _remove(folder, [name for name in written if is_template_file(Path(name))])
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    (folder / TEMPLATE).write_text(template["text"], encoding="utf-8")
    settings = read_object(folder / SETTINGS)
    # Older loaders read it there, and would not look at the file.
    if settings is not None and settings.pop("chat_template", None) is not None:
        write_json(folder / SETTINGS, {**settings, "chat_template": template["text"]})
    return gone


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    if (data := read_object(path)) is not None:
        write_json(path, edit_config(data, changes))

"""Texts that a routed model is made by and judged by, which then tells nothing of other texts."""

from __future__ import annotations

import json
from pathlib import Path

from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.findings import Findings
from mergekit_lite.recipe.schema import Recipe

RECORD_FILE = "calibration.json"


def warn_of_text(recipe: Recipe, file: Path, whose: str, findings: Findings, where: str) -> None:
    """Warn of a file of texts that is one of those that `expect` scores the result on.

    Args:
        recipe: it is named in.
        file: that is there.
        whose: the texts are, in words.
        findings: where warnings are noted.
        where: the recipe names it.
    """
    judged = _judged(recipe)
    if judged and (name := judged.get(file_sha256(file))) is not None:
        findings.warn(_sentence(f"the texts {whose}", name), where)


def warn_of_statistics(recipe: Recipe, stats: str | None, findings: Findings, where: str) -> None:
    """Warn of statistics that were measured on texts that `expect` scores the result on."""
    judged = _judged(recipe)
    record = recipe.folder / Path(stats or "").expanduser() / RECORD_FILE
    if not stats or not judged or not record.is_file():
        return
    try:
        files = json.loads(record.read_bytes()).get("files", ())
    except (ValueError, AttributeError):
        return  # a damaged record is told of where the statistics are read
    for digest in files:
        if digest in judged:
            findings.warn(_sentence(f"the texts of `{stats}`", judged[digest]), where)


def _judged(recipe: Recipe) -> dict[str, str]:
    """Return the name of each text that the result is scored on, by the digest of its file."""
    if recipe.expect is None:
        return {}
    files = {name: recipe.folder / file for name, file in recipe.expect.data.items()}
    return {file_sha256(path): name for name, path in files.items() if path.is_file()}


def _sentence(what: str, name: str) -> str:
    return (
        f"{what} are those of `expect.data.{name}`, by which the result is judged: it will look"
        " better there than on any other text; hold some texts out"
    )

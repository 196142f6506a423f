"""A patch in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.cli._output import bytes_text, table

if TYPE_CHECKING:
    from mergekit_lite.report.patches import Part, PatchSummary


def summary_text(found: PatchSummary, *, layers: bool = True) -> str:
    """Return what a patch holds, for a person to read."""
    settings = ", ".join(f"{name} {value}" for name, value in found.parameters.items())
    model, inside = found.model, found.compressed
    facts = {
        "kind": f"patch of `{found.base}`",
        "codec": f"{found.codec} ({settings})" if settings else found.codec,
        "tensors": f"{inside.tensors} compressed, {found.whole.tensors} stored whole,"
        f" {found.same} as in the base",
        "entries": f"{model.entries:,}",
        "file": f"{bytes_text(found.file_bytes)} for {bytes_text(model.dense)}:"
        f" {found.ratio:.1f} times smaller, {found.bits:.3f} bits an entry",
        "compressed": f"{bytes_text(inside.stored)} for {bytes_text(inside.dense)}:"
        f" {inside.ratio:.1f} times smaller",
        "error": f"{model.error:.3f} of the difference's norm",
    }
    width = max(map(len, facts)) + 2
    text = "\n".join(f"{name:{width}}{value}" for name, value in facts.items())
    if not layers:
        return text
    rows = [_line(name, part) for name, part in found.layers.items()]
    heads = ("layer", "tensors", "dense", "stored", "ratio", "norm", "error")
    return f"{text}\n\n{table(heads, rows, 'lrrrrrr')}"


def _line(name: str, part: Part) -> tuple[str, ...]:
    return (
        name,
        str(part.tensors),
        bytes_text(part.dense),
        bytes_text(part.stored),
        f"{part.ratio:.1f}" if part.stored else "-",
        f"{part.norm:.3g}",
        f"{part.error:.3f}",
    )

"""Writes the ops reference, one page an op, from what the ops say about themselves.

python tools/generate_ops_reference.py            writes docs/ops/*.md
python tools/generate_ops_reference.py --check    exits 1 if a page is missing, stale or left over
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Parameter
from mergekit_lite.recipe.steps import takes_weights

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "ops"
KINDS = {
    "transform": ("Transforms", "change one expert's delta"),
    "combine": ("Combines", "make one tensor out of all experts"),
    "post": ("Posts", "change the merged delta"),
    "preset": ("Presets", "names for whole chains; `plan --expand` shows the chain"),
}
REACHES = {
    "element": "single entries",
    "row": "whole rows",
    "tensor": "whole tensors",
    "layer": "whole layers",
    "model": "the whole model",
}
EXPERTS = {"a": "math", "b": "code"}  # what the vectors call them, and what the examples do


def plain(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        items = (f"{EXPERTS.get(key, key)}: {plain(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, str):
        return EXPERTS.get(value, value)
    # Readers of YAML 1.1 take 1e-05 for text.
    return f"{value:g}" if "e" not in f"{value:g}" else f"{value:.20f}".rstrip("0").rstrip(".")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def type_name(parameter: Parameter) -> str:
    """Return what kind of value a parameter takes, and its bounds."""
    if parameter.choices:
        return " or ".join(f"`{plain(choice)}`" for choice in parameter.choices)
    if parameter.listed:
        text = "list of numbers"
        return f"{text}, each {parameter.range}" if parameter.range else text
    kinds = get_args(parameter.type) or (parameter.type,)
    words = {float: "number", int: "whole number", bool: "true or false", type(None): "null"}
    text = " or ".join(words.get(kind, "name") for kind in kinds)
    return f"{text}, {parameter.range}" if parameter.range else text


def parameters(spec: OpSpec) -> str:
    """Return the table of an op's parameters."""
    rows = []
    for name, parameter in spec.parameters.items():
        default = "required" if parameter.required else f"`{plain(parameter.default)}`"
        for mode, values in spec.compat.items():
            if name in values:
                default += f"; `{plain(values[name])}` with `compat: {mode}`"
        doc = parameter.doc + ("; may differ by expert" if parameter.per_expert else "")
        rows.append((f"`{name}`", type_name(parameter), default, doc))
    if spec.kind in ("combine", "preset") and takes_weights(spec):
        told = "one number by expert, in place of the experts' own `weight`"
        rows.append(("`weights`", "map by expert", "the experts' `weight`", told))
    return table(("parameter", "value", "default", "meaning"), rows)


def values_of(spec: OpSpec) -> dict[str, Any]:
    """Return parameters for the example: the defaults, and what the first vector must give."""
    needed = {n: spec.vectors[0].params[n] for n, p in spec.parameters.items() if p.required}
    return {**needed, **spec.defaults()}


def step(op: str, values: Mapping[str, Any]) -> str:
    """Return a step of a recipe."""
    return f"  - {op}: {plain(values)}"


def example(spec: OpSpec) -> str:
    """Return a complete recipe that uses the op."""
    lines = ["schema_version: 1", "base: ./base", "experts:", "  math: {model: ./math}"]
    if spec.name != "passthrough" and spec.experts[1] != 1:
        lines.append("  code: {model: ./code}")
    lines.append("steps:")
    if spec.structural:
        lines += ["  - linear: {}", "rules:", '  - {match: "*.rotary_emb.*", drop: true}']
    else:
        own, total = step(spec.name, values_of(spec)), "  - task_arithmetic: {}"
        around = {"transform": [own, total], "post": [total, own]}
        lines += around.get(spec.kind, [own])
    return "```yaml\n" + "\n".join(lines) + "\n```"


def chain(spec: OpSpec) -> str:
    """Return what a preset stands for, with its default parameters."""
    # A layer of the transition of `layer_swap`, where there is most to see.
    specials = {"place": Place(layer=5, layers=32)} if "place" in spec.specials else {}
    stages = spec.function(**specials, **spec.arguments(values_of(spec)))
    where = " (for layer 5 of 32)" if specials else ""
    lines = "\n".join(step(op, values) for op, values in stages)
    return f"Stands for{where}:\n\n```yaml\nsteps:\n{lines}\n```"


def facts(spec: OpSpec) -> list[str]:
    """Return what the engine knows about an op, in words."""
    if spec.kind == "preset" or spec.structural:
        return []
    found = [f"Looks at {REACHES[spec.reach]}."]
    if spec.kind == "combine":
        works = "Works on whole weights." if spec.space == "weight" else "Works on deltas."
        found.append("`space` says what it works on." if "space" in spec.parameters else works)
    if spec.needs is not None:
        whole = any(needs.whole or needs.scope for needs in spec.statistics)
        what = "the whole model" if whole else "the inputs"
        found.append(f"May take a first sweep over {what}, for a statistic.")
    if spec.random:
        found.append("Draws random numbers, by seed, expert, tensor name and entry.")
    if spec.commutative:
        found.append("The order of the experts does not matter, up to rounding.")
    return [f"- {fact}" for fact in found]


def vectors(spec: OpSpec) -> str:
    """Return the table of an op's checked examples."""
    rows = []
    for vector in spec.vectors:
        shown = [str(part).replace(" ", "") for part in (vector.deltas, vector.expect)]
        if max(map(len, shown)) > 160:
            shown = ["(see the source)"] * 2
        settings = {**vector.params, **({"weights": vector.weights} if vector.weights else {})}
        if vector.layers > 1:
            inside = vector.layer is not None
            settings["layer"] = f"{vector.layer} of {vector.layers}" if inside else "none"
        words = ", ".join(f"{key} {plain(value)}" for key, value in settings.items())
        rows.append((shown[0], words, shown[1], vector.source))
    return table(("inputs", "parameters", "result", "source"), rows)


def body(spec: OpSpec) -> list[str]:
    """Return the docstring's paragraphs after the first sentence, without what is raised."""
    text = inspect.cleandoc(spec.doc).split("\nRaises:")[0]
    return [shown(part.strip()) for part in text.split("\n\n")[1:] if part.strip()]


def shown(paragraph: str) -> str:
    """Return a paragraph; formulas go into a block, where their stars are no emphasis."""
    title = "Order of operations: "
    if not paragraph.startswith(title):
        return paragraph
    return f"## Order of operations\n\n```text\n{paragraph.removeprefix(title)}\n```"


def page(spec: OpSpec) -> str:
    """Return an op's page."""
    words = body(spec)
    parts = [f"# `{spec.name}`: {spec.title}", spec.summary]
    parts += [part for part in words if not part.startswith("#")]
    also = ", ".join(f"`{alias}`" for alias in spec.aliases)
    named = f" Other names: {also}." if also else ""
    parts.append(f"Source: {spec.paper}. Kind: {spec.kind}.{named}")
    if facts(spec):
        parts.append("\n".join(facts(spec)))
    if spec.kind == "preset":
        parts.append(chain(spec))
    if spec.parameters:
        parts += ["## Parameters", parameters(spec)]
    parts += ["## Example", example(spec)]
    parts += [part for part in words if part.startswith("#")]
    if spec.vectors:
        told = "Each row is run by the tests. Inputs are differences from the base, one an expert."
        parts += ["## Checked examples", told, vectors(spec)]
    return "\n\n".join(parts) + "\n"


def index(specs: Iterable[OpSpec]) -> str:
    """Return the page that lists all ops."""
    specs = list(specs)
    parts = [
        "# Ops",
        "A chain is transforms, then one combine, then posts. A preset names a chain.",
    ]
    for kind, (title, meaning) in KINDS.items():
        rows = [(f"[`{s.name}`]({s.name}.md)", s.summary) for s in specs if s.kind == kind]
        parts += [f"## {title}", f"They {meaning}." if kind != "preset" else f"They are {meaning}."]
        parts.append(table(("op", "what it does"), rows))
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Return every page by file name, of the ops that ship with the package."""
    every = registry().values()
    own = [s for s in every if s.function.__module__.startswith("mergekit_lite.")]
    own.sort(key=lambda spec: spec.name)
    return {"index.md": index(own), **{f"{spec.name}.md": page(spec) for spec in own}}


def stale(folder: Path) -> list[str]:
    """Return the files of `folder` that are missing, out of date or left over."""
    wanted = pages()
    present = {path.name: path.read_text() for path in folder.glob("*.md")}
    return sorted(name for name in wanted | present if wanted.get(name) != present.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the pages; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the ops reference.")
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pages")
    options = parser.parse_args(arguments)
    found = stale(options.out)
    if options.check:
        for name in found:
            print(f"stale: {options.out / name}", file=sys.stderr)
        return 1 if found else 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (options.out / name).write_text(text)
    for name in set(found) - pages().keys():
        (options.out / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())

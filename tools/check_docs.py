"""Hold the prose to the code: links lead somewhere, recipes load, commands and options exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import yaml

from mergekit_lite.cli.main import main as program
from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.recipe import load

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SHELL = {"sh", "bash", "console", "shell"}


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings make, as code hosts spell them."""
    heads = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            yield f"link to `{target}`, which does not exist"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
            yield f"link to `{target}`: that page has no such heading"


def bad_recipe(text: str, schema: dict[str, object]) -> Iterator[str]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f"not YAML: {error}"
        return
    # Fragments and other YAML are shown too; a whole recipe says what it starts from and does.
    if not isinstance(data, dict) or not {"base", "steps"} <= data.keys():
        return
    try:
        load(data)
    except MergekitLiteError as error:
        yield f"recipe does not load: {error}"
    if "extends" not in data:
        for found in jsonschema.Draft202012Validator(schema).iter_errors(data):
            yield f"recipe does not fit the schema: {found.json_path}: {found.message}"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of a shell block, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words:
            yield words


def bad_command(words: list[str], targets: set[str]) -> Iterator[str]:
    if words[0] == "make" and (missing := set(words[1:]) - targets):
        yield f"`make {' '.join(sorted(missing))}` is no target"
    if words[0] != "mergekit-lite":
        return
    command: click.Command = program
    context = click.Context(command)
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inner = command.get_command(context, rest[0])
        if inner is None:
            yield f"`{' '.join(words)}`: no verb `{rest[0]}`"
            return
        command, rest = inner, rest[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {"--help", "-h", "--version"}
    for word in rest:
        if word.startswith("-") and word.partition("=")[0] not in known:
            yield f"`{' '.join(words)}`: no option `{word}`"


def problems(page: Path, schema: dict[str, object], targets: set[str]) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    yield from broken_links(page, text)
    for language, body in FENCE.findall(text):
        if language in SHELL:
            for words in commands(body):
                yield from bad_command(words, targets)
        elif language in {"yaml", "yml"}:
            yield from bad_recipe(body, schema)
        elif language in {"python", "py"}:
            try:
                compile(body, str(page), "exec")
            except SyntaxError as error:
                yield f"Python example does not compile: {error}"


def main() -> int:
    schema = json.loads((ROOT / "mergekit_lite" / "recipe" / "recipe.schema.json").read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    found = [
        f"{p.relative_to(ROOT)}: {what}" for p in pages() for what in problems(p, schema, targets)
    ]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        label = path.relative_to(ROOT)
        found += [f"{label}: {what}" for what in bad_recipe(path.read_text(), schema)]
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    print(f"docs: {len(pages())} pages, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

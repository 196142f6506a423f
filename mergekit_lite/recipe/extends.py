"""`extends:` - a recipe on top of others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe.marks import Mark, Node
from mergekit_lite.recipe.text import only, parse_all

_SOURCES = {"model", "lora", "store"}


def read_file(path: Path, *, shown: str = "", where: str = "", order: int = 0) -> Node:
    """Read and parse one recipe file.

    Args:
        path: the file.
        shown: how places in it are spelt; the file's own name by default.
        where: the place that asked for it.
        order: of this file in a report of problems.

    Raises:
        RecipeError: there is no such file, it is not text or not one YAML document.
    """
    name = shown or path.name
    return only(read_documents(path, shown=name, where=where, order=order), name)


def read_documents(path: Path, *, shown: str, where: str = "", order: int = 0) -> list[Node]:
    """Read and parse every YAML document of a file; the arguments are those of `read_file`.

    Raises:
        RecipeError: there is no such file, or it is not YAML text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe `{path}`", where, _neighbours(path)) from None
    except IsADirectoryError:
        hint = "name the YAML file inside it"
        raise RecipeError(f"`{path}` is a folder, not a recipe", where, hint) from None
    except OSError as error:
        hint = "check that it is a file and that you may read it"
        raise RecipeError(f"cannot read `{path}`: {error.strerror}", where, hint) from None
    except UnicodeDecodeError as error:
        what = f"`{path}` is not UTF-8 text (byte {error.start})"
        raise RecipeError(what, where, "a recipe is a YAML text file") from None
    return parse_all(text, shown, order)


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder `{path.parent}` does not exist"
    found = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    return f"YAML files there: {', '.join(found[:8])}" if found else "no YAML file is there"


def lay_over(under: Node, over: Node) -> Node:
    """Lay one recipe over another, with the short forms of their experts written out.

    `model` and `lora` are alternatives: an expert that is given one of them loses the other.
    """
    upper = _experts(over)
    lower = {
        name: node.with_value({k: v for k, v in node.entries().items() if k not in _SOURCES})
        if name in upper and upper[name].entries().keys() & _SOURCES and node.entries()
        else node
        for name, node in _experts(under).items()
    }
    return merge(_with_experts(under, lower), _with_experts(over, upper))


def _experts(root: Node) -> dict[str, Node]:
    experts = root.get("experts")
    return {
        name: node.with_value({"model": node}) if isinstance(node.value, str) else node
        for name, node in (experts.entries() if experts else {}).items()
    }


def _with_experts(root: Node, experts: dict[str, Node]) -> Node:
    if not experts:
        return root
    return root.with_value({**root.value, "experts": root.value["experts"].with_value(experts)})


def merge(under: Node, over: Node) -> Node:
    """Lay one tree over another: mappings merge by key, everything else is replaced."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return over.with_value(merged)


def spelt(path: Path, asked: Path) -> str:
    """Return how places in a file are spelt, so that a terminal can open them.

    Args:
        path: the file.
        asked: the recipe that was asked for, as it was named.

    Returns:
        The path as it was named, and from the working folder where that can be told.
    """
    here = Path.cwd()
    if path == asked.resolve() and not asked.is_absolute():
        return str(asked)
    near = not asked.is_absolute() or path.is_relative_to(here)
    return os.path.relpath(path, here) if near else str(path)


class Extender:
    """Resolves `extends` of one recipe, depth first, and counts the files on the way.

    Args:
        folder: that of the recipe that was asked for; references are spelt from here.
        asked: that recipe as it was named; places are spelt alike.
    """

    def __init__(self, folder: Path, asked: Path) -> None:
        self.folder = folder
        self.asked = asked
        self.files = 0

    def resolve(self, root: Node, folder: Path, chain: tuple[Path, ...]) -> Node:
        """Return `root` laid over everything it extends.

        Raises:
            RecipeError: a file is missing or broken, or the files extend one another in a circle.
        """
        node = root.get("extends")
        if node is None:
            return root
        own = root.with_value({k: v for k, v in root.value.items() if k != "extends"})
        under: Node | None = None
        for entry in node.items() or [node]:
            if not isinstance(entry.value, str):
                hint = "write `extends: other.yaml` or a list of such paths"
                raise RecipeError("`extends` takes paths", str(entry.mark), hint)
            part = self._load(entry.value, folder, chain, entry.mark)
            under = part if under is None else lay_over(under, part)
        return own if under is None else lay_over(under, own)

    def _load(self, reference: str, folder: Path, chain: tuple[Path, ...], mark: Mark) -> Node:
        path = (folder / reference).resolve()
        shown = spelt(path, self.asked)
        if path in chain:
            circle = [p.name for p in (*chain[chain.index(path) :], path)]
            what = f"recipes extend one another in a circle: {' -> '.join(circle)}"
            raise RecipeError(what, str(mark), "remove one of these `extends`")
        self.files += 1
        root = read_file(path, shown=shown, where=str(mark), order=self.files)
        if root.value is None:
            return root.with_value({})
        if not isinstance(root.value, dict):
            hint = "`extends` names a YAML file that holds a mapping of keys, like this one"
            raise RecipeError(f"`{reference}` is not a recipe", str(root.mark), hint)
        return self.resolve(self._rebase(root, path.parent), path.parent, (*chain, path))

    def _rebase(self, root: Node, folder: Path) -> Node:
        """Spell `./` and `../` references of another folder's recipe from the asked-for recipe."""
        if folder == self.folder:
            return root

        def moved(node: Node) -> Node:
            text = node.value
            if not isinstance(text, str) or not text.startswith(("./", "../")):
                return node
            path = os.path.relpath(folder / text, self.folder)
            return node.with_value(path if path.startswith("..") else f"./{path}")

        entries = dict(root.entries())
        if (stages := root.get("stages")) is not None and isinstance(stages.value, dict):
            moved_stages = {
                name: self._rebase(stage, folder) if isinstance(stage.value, dict) else stage
                for name, stage in stages.value.items()
            }
            entries["stages"] = stages.with_value(moved_stages)
        if "base" in entries:
            entries["base"] = moved(entries["base"])
        for key in ("expect", "search"):
            if key in entries:
                entries[key] = _files_moved(entries[key], moved)
        if "experts" in entries:
            experts = {
                name: expert.with_value(
                    {k: moved(v) if k in _SOURCES else v for k, v in expert.value.items()}
                )
                if isinstance(expert.value, dict)
                else moved(expert)
                for name, expert in entries["experts"].entries().items()
            }
            if experts:
                entries["experts"] = replace(entries["experts"], value=experts)
        return root.with_value(entries)


def _files_moved(part: Node, moved: Callable[[Node], Node]) -> Node:
    """Return `expect` or `search` with the files that it names spelt anew."""
    if not isinstance(part.value, dict):
        return part
    entries = dict(part.value)
    if "baseline" in entries:
        entries["baseline"] = moved(entries["baseline"])
    for key in ("data", "test"):
        if (data := entries.get(key)) is not None and isinstance(data.value, dict):
            files = {name: moved(file) for name, file in data.value.items()}
            entries[key] = data.with_value(files)
    return part.with_value(entries)

"""A recipe from a file or plain data, with everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mergekit_lite.errors import RecipeError, nearest
from mergekit_lite.ops import registry
from mergekit_lite.recipe import compat
from mergekit_lite.recipe.extends import Extender, read_documents, spelt
from mergekit_lite.recipe.marks import Mark, Node, Problems, from_plain, kind_of, show
from mergekit_lite.recipe.override import apply_overrides
from mergekit_lite.recipe.schema import BASE, Expert, Recipe, Slice
from mergekit_lite.recipe.searched import settled
from mergekit_lite.recipe.shape import Shaper
from mergekit_lite.recipe.text import only
from mergekit_lite.recipe.variables import substitute_variables


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it that can be checked without the models.

    Args:
        source: path of a YAML file, or the recipe as plain data (relative paths in it then count
            from the working folder).
        overrides: `path=value` texts laid over it, such as `steps.0.ties.density=0.3`.

    Raises:
        RecipeError: with every problem, each with its line and column and what to do.
    """
    tree = read_tree(source, overrides, problems := Problems())
    if tree.command != "ours" and not tree.readable:
        problems.raise_if_any()  # it could not be read far enough to say more
    return checked(tree, settled(tree.root, problems), problems)


def checked(tree: Tree, root: Node, problems: Problems) -> Recipe:
    """Return a recipe whose tree has been read.

    Args:
        tree: as it was read.
        root: its nodes, each parameter with a value.
        problems: what is known to be wrong.

    Raises:
        RecipeError: with every problem.
    """
    recipe = _validated(root, problems, tree.name, tree.folder)
    places = {path: str(node.mark) for path, node in root.walk()}
    recipe._places.update(places)
    for stage_name, stage in recipe.stages.items():
        within = ("stages", stage_name)
        stage._places.update({p[2:]: text for p, text in places.items() if p[:2] == within})
    recipe._notes.extend(str(note) for note in tree.notes if note.warns)
    return recipe


def draft(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe | None:
    """Return what a recipe that `load` refuses says about its models.

    Only the base, the experts' models and `extra` are filled in, each where it can be told; a base
    that cannot is empty.

    Returns:
        The rest of the recipe, fit to look its models up; None where there is nothing to read.
    """
    try:
        tree = read_tree(source, overrides, Problems())
    except RecipeError:
        return None
    root, name, folder = tree.root, tree.name, tree.folder
    experts = root.get("experts")
    base, extra = root.get("base"), root.get("extra")
    found = Recipe.model_construct(
        base=_reference(base),
        experts={
            name: Expert.model_construct(None, **sources, scope=_scope(node))
            for name, node in (experts.entries() if experts else {}).items()
            if (sources := _sources(node)) and name != BASE
        },
        extra="error" if extra is None or extra.value == "error" else "drop",
        scope=("*",) if root.get("scope") else (),
        slices=(Slice.model_construct(layers={}),) if root.get("slices") else (),
        name=name,
        folder=folder,
    )
    found._places.update({path: str(node.mark) for path, node in root.walk()})
    return found


def _reference(node: Node | None) -> str:
    text = node.value if node is not None and isinstance(node.value, str) else ""
    return "" if text.startswith("@") or "${" in text else text


def _sources(node: Node) -> dict[str, str]:
    """Return the one `model` or `lora` that an expert names, nothing where that is not clear."""
    named = {"model": node} if isinstance(node.value, str) else node.entries()
    given = {key: _reference(node) for key, node in named.items() if key in ("model", "lora")}
    return given if len(given) == 1 and all(given.values()) else {}


def _scope(node: Node) -> tuple[str, ...]:
    """Return a scope of everything where an expert has other names than the base."""
    return ("*",) if {"scope", "rename"} & node.entries().keys() else ()


@dataclass(frozen=True)
class Tree:
    """A recipe's tree with all laid over and put in, and mergekit's read into our form.

    Attributes:
        root: the tree.
        name: the recipe's name.
        folder: the folder from which its paths are spelt.
        command: the command that it was written for.
        notes: what reading another tool's recipe left out.
    """

    root: Node
    name: str
    folder: Path
    command: compat.Command = "ours"
    notes: tuple[compat.Note, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether it has a chain, and no part that this version refuses as a whole."""
        has_chain = self.root.get("steps") is not None or self.root.get("moe") is not None
        return has_chain and self.root.get("stages") is None


def read_tree(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], problems: Problems
) -> Tree:
    """Return the tree of a recipe; what is wrong with it is noted.

    Raises:
        RecipeError: it cannot be read at all, or is for a command that there is no like of here.
    """
    chain: tuple[Path, ...] = ()
    asked = Path()
    if isinstance(source, Mapping):
        name, folder = "recipe", Path.cwd()
        documents = [from_plain(source, name)]
    else:
        asked, path = Path(source), Path(source).resolve()
        name, folder, chain = path.name, path.parent, (path,)
        documents = read_documents(path, shown=spelt(path, asked))
    if any(compat.command_of(document) == "merge" for document in documents[1:]):
        return _translated(documents, name, folder, overrides, problems)
    root = only(documents, name if chain == () else spelt(chain[0], asked))
    if not isinstance(root.value, dict):
        what = "the recipe is empty" if root.value is None else _not_a_recipe(root)
        problems.add(what, root.mark, "it needs at least `base` and `steps`")
        problems.raise_if_any()
    root = Extender(folder, asked).resolve(root, folder, chain)
    command = compat.command_of(root)
    compat.refuse(command, root, problems)
    if command == "evolve":
        problems.raise_if_any()
    if command == "moe":
        return _routed(root, name, folder, overrides, problems)
    if command == "ours":
        return Tree(_laid_over(root, overrides, problems), name, folder)
    return _translated([root], name, folder, overrides, problems)


def _routed(
    root: Node, name: str, folder: Path, overrides: Sequence[str], problems: Problems
) -> Tree:
    """Return the tree of a recipe of `mergekit-moe`."""
    from mergekit_lite.recipe.compat.routed import RoutedTranslator, is_theirs

    notes = compat.Notes()
    theirs = [text for text in overrides if is_theirs(text)]
    root = _laid_over(root, theirs, problems)
    root = RoutedTranslator(root, folder, problems, notes).translate()
    root = apply_overrides(root, [text for text in overrides if text not in theirs], problems)
    return Tree(root, name, folder, "moe", notes.ordered())


def _translated(
    documents: Sequence[Node],
    name: str,
    folder: Path,
    overrides: Sequence[str],
    problems: Problems,
) -> Tree:
    """Return the tree of a mergekit recipe, or of a file of several."""
    # Sixteen modules that recipes of our own do without.
    from mergekit_lite.recipe.compat.several import several
    from mergekit_lite.recipe.compat.translate import Translator, is_theirs

    notes = compat.Notes()
    alone = len(documents) == 1
    theirs = [text for text in overrides if alone and is_theirs(text)]

    def translate(root: Node, stages: frozenset[str]) -> Node:
        root = _laid_over(root, theirs, problems)
        return Translator(root, folder, registry(), problems, notes, stages).translate()

    root = (
        translate(documents[0], frozenset()) if alone else several(documents, translate, problems)
    )
    root = apply_overrides(root, [text for text in overrides if text not in theirs], problems)
    return Tree(root, name, folder, "merge", notes.ordered())


def _laid_over(root: Node, overrides: Sequence[str], problems: Problems) -> Node:
    """Return a tree with the changes of the command line in it, and its variables' values."""
    root = apply_overrides(root, overrides, problems)
    if (late := root.get("extends")) is not None:
        problems.add("`extends` cannot be set on the command line", late.mark, "edit the file")
        root = root.with_value({k: v for k, v in root.value.items() if k != "extends"})
    return substitute_variables(root, problems)


def _not_a_recipe(root: Node) -> str:
    return f"a recipe is a mapping of keys to values, this is {kind_of(root.value)}"


def _validated(root: Node, problems: Problems, name: str, folder: Path) -> Recipe:
    data = Shaper(root, registry(), problems).shape()
    for stage in data.get("stages", {}).values():
        stage |= {"name": name, "folder": folder}
    try:
        recipe = Recipe.model_validate({**data, "name": name, "folder": folder})
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["loc"][-1:] != ("steps",) or not problems:  # else noted with a better hint
                _note(details, root, problems)
        problems.raise_if_any()
        raise
    problems.raise_if_any()
    return recipe


def _note(details: ErrorDetails, root: Node, problems: Problems) -> None:
    marks = dict(root.walk())
    path = tuple(details["loc"])
    label = f"`{'.'.join(str(part) for part in path)}`"
    while path and path not in marks:
        path = path[:-1]
    mark: Mark = marks[path].mark
    what, hint = _words(details, label)
    problems.add(what, mark, hint)


def _words(details: ErrorDetails, label: str) -> tuple[str, str]:
    """Return what a validation error says, in the words of this package."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    given = f"`{show(value)}`" if isinstance(value, str | int | float) else kind_of(value)
    if kind == "missing":
        return f"{label} is missing", _EXAMPLES.get(label.strip("`"), "")
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "`")
        words = [word.strip("`") for word in allowed.replace(" or ", ", ").split(", ")]
        return f"{label} must be {allowed}, not {given}", nearest(str(value), words)
    if kind in ("size", "layers", "keep", "epsilon"):
        return f"{label}: {context['what']}", str(context.get("hint", ""))
    if kind == "greater_than_equal":
        return f"{label} must be at least {context['ge']}, not {given}", ""
    wanted = _TYPES.get(kind)
    if wanted:
        return f"{label} must be {wanted}, not {given}", _EXAMPLES.get(label.strip("`"), "")
    return f"{label}: {details['msg']}", ""


_EXAMPLES = {
    "base": "name the model that is merged into: `base: ./model`",
    "experts": "write `experts: {NAME: {model: ...}}`",
    "output": "write `output: {dtype: bfloat16}`",
    "tokenizer": "write `tokenizer: {source: base}`",
    "chat_template": "write `chat_template: base`",
    "allow_missing": "write `allow_missing: ['*.bias']`",
    "rules": "write `rules: [{match: '*.mlp.*', take: base}]`",
}
_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "float_type": "a number",
}

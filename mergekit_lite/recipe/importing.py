"""From the file of another tool's recipe to the text of one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe.compat.comments import comments_of
from mergekit_lite.recipe.compat.write import recipe_text, respelt
from mergekit_lite.recipe.load import load, read_tree
from mergekit_lite.recipe.marks import Problems


@dataclass(frozen=True)
class Imported:
    """A recipe in our language.

    Attributes:
        text: the YAML text.
        notes: what was left out or is understood otherwise, each with its place in the old file.
    """

    text: str
    notes: tuple[str, ...]


def import_recipe(path: Path, folder: Path) -> Imported:
    """Return a mergekit recipe in our language.

    Args:
        path: the file.
        folder: where the text will stand, from which its paths are spelt.

    Raises:
        RecipeError: all that is wrong with the recipe, or it is no recipe of mergekit's.
    """
    tree = read_tree(path, (), Problems())
    if tree.command == "ours":
        what = "this is a recipe of mergekit-lite already"
        raise RecipeError(what, str(path), f"run it: `mergekit-lite run {path} -o merged`")
    load(path)  # so that all problems are told
    root = respelt(tree.root, tree.folder, folder)
    comments = comments_of(path.read_bytes().decode("utf-8-sig"))
    text = recipe_text(root, tree.name, comments)
    return Imported(text, tuple(str(note) for note in tree.notes))

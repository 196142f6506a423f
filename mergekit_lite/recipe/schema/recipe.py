"""The recipe as a whole, and recipes within it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.recipe.schema.expect import Expect
from mergekit_lite.recipe.schema.fields import Part, Scope, whole
from mergekit_lite.recipe.schema.inputs import Expert, Steps
from mergekit_lite.recipe.schema.moe import Moe
from mergekit_lite.recipe.schema.output import Output
from mergekit_lite.recipe.schema.routers import Routers
from mergekit_lite.recipe.schema.rules import Rule, Slice
from mergekit_lite.recipe.schema.search import Search
from mergekit_lite.recipe.schema.tokens import Tokenizer


class Recipe(Part):
    """A checked recipe: everything a plan needs to know besides the models themselves."""

    schema_version: Literal[1] = 1
    """Version of the recipe language."""
    base: str
    """The model that is merged into: a folder, a `.safetensors` file or `zoo:NAME`."""
    experts: Mapping[str, Expert] = {}
    """The models that are merged, by the names that the rest of the recipe uses."""
    steps: Annotated[Steps, Field(min_length=1)]
    """The chain for every float tensor: transforms, then one combine, then posts."""
    slices: tuple[Slice, ...] = ()
    """The layers of the output from bottom to top, where they are not those of the base."""
    rules: tuple[Rule, ...] = ()
    """Exceptions from the chain, in order; a rule that matches no tensor is an error."""
    vocab: Literal["base_rows", "common_rows", "union"] | None = None
    """What to do where the vocabularies of base and experts differ. `base_rows`: the base's rows,
    an expert counts where it has the token; `common_rows`: only rows of tokens that all models
    have are merged, the others are the base's; `union`: also rows for tokens that the base
    lacks. Without it, differing vocabularies are an error."""
    tokenizer: Tokenizer = Tokenizer()
    """Whose tokenizer goes with the result."""
    chat_template: str | None = None
    """Whose chat template goes with the result: `base`, an expert's name, `auto` (what most inputs
    have), a known format (`chatml`, `llama3`, `mistral`, `exaone` or `alpaca`), or the template
    itself."""
    head: Literal["tie", "untie"] | None = None
    """Whether the result's head is its embedding (`tie`) or weights of its own (`untie`), where
    base and experts differ; by default as in the base."""
    output: Output = Output()
    """How the result is stored."""
    seed: Annotated[int, Field(ge=0), BeforeValidator(whole)] = 0
    """Seed of every random op; the same recipe with the same seed gives the same bytes."""
    compat: Literal["none", "mergekit"] = "none"
    """`mergekit` reproduces that tool's numbers where they differ from the papers'."""
    allow_missing: tuple[str, ...] = ()
    """Name patterns of base tensors that an expert may lack; it then leaves them as in the base."""
    scope: Scope = ()
    """The `scope` of every expert that has none of its own."""
    routers: Literal["base", "merge"] | Routers | None = None
    """What becomes of routers where a chain merges: `base` keeps the base's, which is the default;
    `merge` treats them like all else, as `compat: mergekit` does; a mapping fits them to those of
    the experts. A rule that names them wins."""
    extra: Literal["error", "drop"] = "error"
    """What to do with tensors of an expert that the base lacks."""
    moe: Moe | None = None
    """Assemble a routed model whose experts are the feed-forward layers of these models."""
    expect: Expect | None = None
    """How good the result must be, as `run` and `eval --recipe` check."""
    search: Search | None = None
    """By what `search` chooses the parameters that are written `{search: [low, high]}` or
    `{choice: [...]}`; nothing else looks at it."""

    stages: Mapping[str, Stage] = {}
    """Recipes by name whose results are models of this one, named `@NAME`; see below."""

    name: SkipJsonSchema[str] = Field("recipe", exclude=True)
    folder: SkipJsonSchema[Path] = Field(Path(), exclude=True)
    _places: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    _notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was understood otherwise than one may think, each with its place."""
        return tuple(self._notes)

    def at(self, *path: str | int) -> str:
        """Return where a value stands (`recipe.yaml:14:9`), or its nearest parent's place.

        Args:
            path: keys and list indices from the top, such as `"rules", 2, "match"`.
        """
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, self.name)

    def spelt_from(self, folder: Path) -> Self:
        """Return the recipe with its paths taken as from another folder."""
        stages = {name: stage.spelt_from(folder) for name, stage in self.stages.items()}
        return self.model_copy(update={"folder": folder, "stages": stages})

    def plain(self) -> dict[str, Any]:
        """Return the recipe as JSON-able data that `load` accepts and reads as the same recipe."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        data["steps"] = _written(data["steps"])
        for expert in data["experts"].values():
            for key in ("rename", "scope"):
                if not expert[key]:
                    del expert[key]
            if steps := _written(expert.pop("steps")):
                expert["steps"] = steps
        for key in ("slices", "scope"):
            if not data[key]:
                del data[key]
        for part in (*data.get("slices", ()), *data["rules"]):
            if "steps" in part:
                part["steps"] = _written(part["steps"])
        if self.moe is not None:
            data["moe"] = self.moe.plain()
        data.pop("stages")
        if self.stages:
            data["stages"] = {name: stage.plain() for name, stage in self.stages.items()}
        return data


class Stage(Recipe):
    """A recipe inside a recipe: its result is a model that the recipe, or another stage, uses."""

    keep: bool = False
    """Write the result as a checkpoint beside the output and keep it, before it is used."""
    named: SkipJsonSchema[bool] = Field(False, exclude=True)

    def plain(self) -> dict[str, Any]:
        """Return the stage as JSON-able data that `load` reads as the same stage."""
        data = super().plain()
        for key in ("schema_version", "tokenizer", "chat_template"):
            data.pop(key, None)
        if not self.named:
            data["output"].pop("dtype")
        return data


def _written(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{step["op"]: step["params"]} for step in steps]

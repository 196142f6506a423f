"""What a recipe may say about how a search tells good results from bad ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.recipe.schema.expect import ScoreName
from mergekit_lite.recipe.schema.fields import Part, whole


class Objective(Part):
    """One number that a search makes better."""

    data: str
    """Name of the data that it is of."""
    score: ScoreName
    """Which number, as in a bound of `expect`."""
    against: str | None = None
    """Of `recovery`, `flips`, `kl` and `agreement`: the other model, `base` or an expert's name."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its part in the one number that a search of several objectives looks at."""
    where: SkipJsonSchema[str] = Field("", exclude=True)


class Search(Part):
    """What `search` looks at when it chooses the parameters that are marked."""

    data: Mapping[str, str] = {}
    """Texts and questions for validation by name, from the recipe's folder, as `expect` takes
    them; never those that the result is judged by."""
    objectives: tuple[Objective, ...] = ()
    """What is to be made better; by default the bits per byte of each text, and the accuracy of
    the questions of each file."""
    test: Mapping[str, str] = {}
    """Held-out data, on which the best candidate is scored once, at the end."""
    windows: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 16
    """Most windows of a text, and questions of a file, that are scored."""
    window_bytes: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 512
    """Bytes of a window of text; it ends with a line."""

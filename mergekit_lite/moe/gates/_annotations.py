"""Parameters that several ways of making gates have in common: type, range and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from mergekit_lite.ops._parameters import Doc, Range

Spread = Annotated[
    float | None,
    Range(above=0),
    Doc(
        "standard deviation of the logits about each token's mean, on the texts; by default 1,"
        " or 4 where a token passes one expert"
    ),
]
Confidence = Annotated[
    float | None,
    Range(above=0, below=1),
    Doc("in place of `spread`: the mean weight of each token's likeliest expert, on the texts"),
]
Through = Annotated[
    Literal["base", "expert"],
    Doc("feed-forward layers that texts pass: the base's, or those of the expert they are for"),
]
Labels = Annotated[
    Literal["expert", "perplexity"],
    Doc("whose a text is: as the recipe says, or the expert's that predicts it best"),
]
Tokens = Annotated[int, Range(at_least=1), Doc("most tokens of an expert's texts")]
Length = Annotated[int, Range(at_least=1), Doc("most tokens of a text")]

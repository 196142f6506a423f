"""Parameters that several ops have in common: type, range and meaning, said once."""

from __future__ import annotations

from typing import Annotated, Literal

from mergekit_lite.ops._parameters import Doc, Range

Lambda = Annotated[float, Doc("multiplies the merged task vector")]
Normalize = Annotated[bool, Doc("divide by the sum of the weights")]

Density = Annotated[float, Range(above=0, at_most=1), Doc("fraction of entries kept"), "per_expert"]
Density1d = Annotated[
    float | None,
    Range(above=0, at_most=1),
    Doc("fraction kept of 1-D tensors, such as norms and biases; null means `density`"),
]
Gamma = Annotated[
    float,
    Range(at_least=0, below=1),
    Doc("fraction of largest entries removed first"),
    "per_expert",
]
Unit = Annotated[
    Literal["row", "tensor"], Doc("rank the entries of each row, or of the whole tensor")
]
ModelScope = Annotated[
    Literal["model", "tensor"], Doc("rank all of the model together (the paper), or each tensor")
]

Chance = Annotated[
    float, Range(above=0, at_most=1), Doc("chance of an entry to be kept"), "per_expert"
]
Rescale = Annotated[
    Literal["inv_density", "l1", "none"],
    Doc("multiply what is kept by 1/density, or so that the sum of magnitudes is unchanged"),
]
MeanChance = Annotated[
    float, Range(above=0, at_most=1), Doc("mean chance of an entry to be kept"), "per_expert"
]
ChanceSpread = Annotated[
    float,
    Range(at_least=0, below=0.5),
    Doc("the largest entry of a row has this much more chance, the smallest as much less"),
    "per_expert",
]
ChanceRescale = Annotated[
    Literal["inv_prob", "l1", "none"],
    Doc("divide what is kept by its chance, or keep the sum of magnitudes of the tensor"),
]

Elect = Annotated[Literal["mass", "count"], Doc("vote by summed magnitude or by head count")]
Aggregate = Annotated[Literal["mean", "sum", "max"], Doc("what to make of the entries that agree")]

MaskLambda = Annotated[
    float,
    Range(above=0),
    Doc("how much of the others' change a task must outweigh to claim an entry"),
    "per_expert",
]
Claims = Annotated[
    int, Range(at_least=1), Doc("how many experts must claim an entry for it to be kept")
]

IsoAlpha = Annotated[float, Doc("multiplies the merged task vector; the authors tune it up to 3")]
IsoTail = Annotated[
    float,
    Range(above=0, below=1),
    Doc("singular values below this part of the largest stay zero"),
]

"""What a codec says of itself, taken from its function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.checkpoint.coded.grid import Fetch
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._types import Decoder, Delta, Encoded, Scheme
from mergekit_lite.errors import Problem, RecipeError, nearest
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.ops._parameters import Parameter
from mergekit_lite.ops._spec import parameters_of

Encode = Callable[..., Encoded | None]
Facts = Mapping[str, float]


@dataclass(frozen=True)
class CodecVector:
    """One hand-checkable case: a difference, parameters and what is decoded again.

    Attributes:
        delta: the difference, as nested lists.
        expect: what it is decoded to; None where the tensor is stored whole.
        params: of the codec.
        name: of the tensor.
        tolerance: largest error of an entry.
        source: where it comes from.
    """

    delta: Sequence[Any]
    expect: Sequence[Any] | None
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str = "model.layers.0.mlp.up_proj.weight"
    tolerance: float = 1e-5
    source: str = ""


@dataclass(frozen=True)
class Comparison:
    """What a codec asks of all tensors before it compresses the first.

    Attributes:
        look: what it takes down of a tensor; nothing where it will not compress it.
        decide: from what was taken down of each tensor and the parameters, what each is given.
    """

    look: Callable[[Delta, Mapping[str, Any]], Facts | None]
    decide: Callable[[Mapping[str, Facts], Mapping[str, Any]], Mapping[str, Facts]]


@dataclass(frozen=True)
class Method:
    """What every way to compress says of itself.

    Attributes:
        name: as the command line and files say it.
        title: its common name.
        paper: where it comes from.
        doc: what it does.
        encode: compresses one tensor.
        parameters: by name.
        keep: the parameter that says which part of a model's entries is kept, where a survey of
            the whole model is asked for; else empty.
    """

    name: str
    title: str
    paper: str
    doc: str
    encode: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    keep: str = ""

    @property
    def summary(self) -> str:
        """The first sentence of what it does."""
        return re.split(r"(?<=\.)\s", self.doc, maxsplit=1)[0].replace("\n", " ")

    def resolved(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, with the defaults of those that are not given.

        Raises:
            RecipeError: one is not known, or out of range; all are told.
        """
        problems, known = [], self.parameters
        for key, value in params.items():
            if key not in known:
                listed = ", ".join(f"`{one}`" for one in known) or "none"
                hint = nearest(key, known) or f"its parameters: {listed}"
                problems.append(Problem(f"`{self.name}` has no parameter `{key}`", hint=hint))
            elif wrong := known[key].problem(value):
                problems.append(Problem(f"`{self.name}`: `{key}` {wrong}"))
        if problems:
            raise RecipeError(problems)
        return {**{p.name: p.default for p in known.values()}, **params}


@dataclass(frozen=True)
class Codec(Method):
    """A way to compress the difference of a model to its base.

    Attributes:
        encode: compresses one tensor; None where that is to be stored whole.
        vectors: checked examples.
        compares: what it asks of all tensors before it compresses the first.
        calibrated: it makes use of Gram matrices of the layers' inputs.
    """

    encode: Encode
    vectors: tuple[CodecVector, ...] = ()
    compares: Comparison | None = None
    calibrated: bool = False


CODECS: dict[str, Codec] = {}
SCHEMES: dict[str, Scheme] = {}


def codec(
    *,
    title: str,
    paper: str,
    keep: str = "",
    vectors: Sequence[CodecVector] = (),
    compares: Comparison | None = None,
    calibrated: bool = False,
) -> Callable[[Encode], Encode]:
    """Register a function `(Delta, *, parameters) -> Encoded | None` as a codec of its name."""

    def decorate(function: Encode) -> Encode:
        parameters, _ = parameters_of(function)
        doc = inspect.getdoc(function) or ""
        name = function.__name__
        CODECS[name] = Codec(
            name,
            title,
            paper,
            doc,
            function,
            parameters,
            keep,
            tuple(vectors),
            compares,
            calibrated,
        )
        return function

    return decorate


def scheme(
    name: str, *, kernels: Sequence[Kernel] = (), held: Callable[[Packed], int] = lambda packed: 0
) -> Callable[[Callable[[Packed, Fetch], Decoder]], Callable[[Packed, Fetch], Decoder]]:
    """Register what decodes tensors that are stored in a scheme.

    Args:
        name: of the scheme.
        kernels: what decoding calls.
        held: bytes that stay in memory while a tensor is decoded.
    """

    def decorate(decoder: Callable[[Packed, Fetch], Decoder]) -> Callable[..., Decoder]:
        SCHEMES[name] = Scheme(name, decoder, tuple(kernels), held)
        return decoder

    return decorate


def compressed(codec: Codec, delta: Delta, params: Mapping[str, Any]) -> Encoded | None:
    """Return a difference compressed, with all parameters given; None where it is stored whole."""
    return codec.encode(delta, **params)

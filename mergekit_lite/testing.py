"""The conformance suite: what every op must hold to, whoever wrote it.

    import pytest
    from mergekit_lite.testing import pytest_cases

    @pytest.mark.parametrize("case", pytest_cases("my_op"))
    def test_my_op(case):
        case()

Or, without pytest: `for case in conformance_cases("my_op"): case()`. A case that does not hold
raises AssertionError. Inputs are drawn from the op's own vectors: each vector is one way to call
the op, so give one for every choice of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops import OpSpec, get, merge_tensors
from mergekit_lite.ops._chain import (
    Beside,
    Stage,
    apply_combine,
    apply_transform,
    placed,
    statistic,
)
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Vector
from mergekit_lite.ops._statistics import answer_of

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((), (1,), (0,), (7,), (5, 1), (1, 6), (4, 9), (2, 3, 5))
"""Shapes that every op must take: scalar, single, empty, width 1, and more dimensions."""


@dataclass(frozen=True)
class Case:
    """One property of one op; call it to check it.

    Attributes:
        name: `op: property`.
        check: raises AssertionError where the property does not hold.
        gpu: needs a CUDA device.
    """

    name: str
    check: Callable[[], None]
    gpu: bool = False

    def __call__(self) -> None:
        self.check()

    def __str__(self) -> str:
        return self.name


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _same(got: Tensor, expected: Tensor, what: str) -> None:
    """Equal bit for bit; the bits of -0.0 and 0.0 differ."""
    import torch

    bits = torch.equal(got.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))
    _hold(bits, f"{what}: {got} is not bit for bit {expected}")


def _close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    import torch

    torch.testing.assert_close(
        got, expected, atol=tolerance, rtol=tolerance, msg=f"{what}: {got} is not {expected}"
    )


def _alike(spec: OpSpec, got: Tensor, expected: Tensor, what: str) -> None:
    """Bit for bit where an op looks at entries or rows; else up to the order of its sums."""
    if spec.reach in ("element", "row"):
        _same(got, expected, what)
    else:
        _close(got, expected, 1e-4, what)


def _call(spec: OpSpec, way: Vector, deltas: list[Tensor], **more: Any) -> Tensor:
    weights = more.pop("weights", way.weights)
    if way.calibration is not None:
        import torch

        more["calibration"] = [torch.tensor(each, dtype=torch.float32) for each in way.calibration]
    given = {"layer": way.layer, "layers": way.layers, "weights": weights, **more, **way.params}
    return merge_tensors(spec.name, deltas, **given)


def _deltas(way: Vector, shape: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Return random deltas, as many as the vector has, with some zeros and ties among them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator) for _ in way.deltas]
    return [(delta * 8).round() / 8 if i % 2 else delta for i, delta in enumerate(drawn)]


def _describes_itself(spec: OpSpec) -> None:
    _hold(bool(spec.title and spec.paper), f"{spec.name} lacks a title or a paper")
    _hold(spec.summary.endswith("."), f"{spec.name}'s docstring begins with no sentence")
    for parameter in spec.parameters.values():
        _hold(bool(parameter.doc), f"{spec.name}.{parameter.name} lacks a Doc")
    required = dict(spec.vectors[0].params) if spec.vectors else {}
    for compat in ("none", *spec.compat):
        values = {**required, **spec.defaults(compat)}
        _hold(not spec.problems(values), f"defaults of {spec.name}: {spec.problems(values)}")
    _hold(bool(spec.vectors) or spec.structural, f"{spec.name} has no vector")


def _vectors(spec: OpSpec) -> None:
    import torch

    for way in spec.vectors:
        deltas = [torch.tensor(delta, dtype=torch.float32) for delta in way.deltas]
        expected = torch.tensor(way.expect, dtype=torch.float32)
        _hold(bool(way.source), f"a vector of {spec.name} does not say where it comes from")
        _close(_call(spec, way, deltas), expected, way.tolerance, way.source)


def _leaves_inputs_alone(spec: OpSpec, way: Vector) -> None:
    deltas = _deltas(way, (4, 9))
    before = [delta.clone() for delta in deltas]
    _call(spec, way, deltas, base=before[0])
    for delta, kept in zip(deltas, before, strict=True):
        _same(delta, kept, "an input was changed")


def _takes_every_shape(spec: OpSpec, way: Vector) -> None:
    import torch

    for shape in SHAPES:
        result = _call(spec, way, _deltas(way, shape))
        _hold(result.shape == shape, f"{shape} became {tuple(result.shape)}")
        _hold(result.dtype == torch.float32, f"the result is {result.dtype}, not fp32")
        _hold(bool(torch.isfinite(result).all()), f"{shape} gave {result}")


def _computes_in_fp32(spec: OpSpec, way: Vector) -> None:
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        small = [delta.to(dtype) for delta in _deltas(way, (4, 9))]
        wide = [delta.float() for delta in small]
        _same(_call(spec, way, small), _call(spec, way, wide), f"{dtype} inputs")


def _ignores_strides(spec: OpSpec, way: Vector) -> None:
    deltas = _deltas(way, (4, 9))
    strided = [delta.t().contiguous().t() for delta in deltas]
    _alike(spec, _call(spec, way, strided), _call(spec, way, deltas), "non-contiguous inputs")


def _zero_deltas_give_the_base(spec: OpSpec, way: Vector) -> None:
    import torch

    if spec.space_for({**spec.defaults(), **way.params}) == "weight":
        return
    base = torch.tensor([[1.5, -0.0, 0.0], [-3e-39, 1e30, -2.0]])
    zeros = [torch.zeros_like(base) for _ in way.deltas]
    _same(_call(spec, way, zeros, base=base), base, "zero deltas")


def _order_of_experts(spec: OpSpec, way: Vector) -> None:
    count = len(way.deltas)
    deltas, weights = _deltas(way, (4, 9)), [0.5, 0.25, 0.375, 0.125][:count]
    if count > len(weights):
        return
    forward = _call(spec, way, deltas, weights=weights)
    turned = replace(way, params={key: _turned(v, count) for key, v in way.params.items()})
    backward = _call(spec, turned, deltas[::-1], weights=weights[::-1])
    _close(backward, forward, 1e-5, "experts in another order")
    if count == 2:
        _alike(spec, backward, forward, "two experts swapped")


def _turned(value: Any, count: int) -> Any:
    """Return a map by expert with the experts in reverse; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    names = [chr(97 + number) for number in range(count)]
    own = {name: value.get(name, value.get("default")) for name in names}
    return dict(zip(names, reversed(own.values()), strict=True))


def _tiles(spec: OpSpec, whole: Tensor, params: Any) -> Iterator[slice]:
    """Uneven tiles: rows of a matrix where rows must be whole, else runs of entries."""
    step = whole.shape[-1] if spec.reach_for(params) == "row" else 5
    for start in range(0, whole.numel(), step):
        yield slice(start, min(start + step, whole.numel()))


def _tiled_equals_whole(spec: OpSpec, way: Vector) -> None:
    import torch

    params = {**spec.defaults(), **way.params}
    if spec.reach_for(params) not in ("element", "row"):
        return
    deltas = _deltas(way, (6, 7))
    stage = Stage(spec.name, params, "" if spec.kind == "combine" else "a")
    place = placed(stage, Place(name="t", size=42, layer=way.layer, layers=way.layers), seed=3)
    names = [chr(97 + number) for number in range(len(deltas))]
    behind = deltas if spec.kind == "post" and "deltas" in spec.specials else []
    # What files hold of a tensor is cut with it; the deltas will do for that too.
    measured = deltas if spec.calibration else []
    values = [deltas[0], *behind] if behind else [*deltas, *measured]
    answer = statistic(spec, params, values, place)

    def apply(parts: list[Tensor], at: Place) -> Tensor:
        beside = Beside(parts if measured else None, deltas=parts, names=names)
        if spec.kind == "combine":
            return apply_combine(stage, parts, at, answer, beside)
        return apply_transform(stage, parts[0], at, answer, beside)

    flat = [delta.flatten() for delta in deltas]
    pieces = [
        apply(
            [x[tile] for x in flat],
            Place("t", tile.start, 42, place.layer, place.layers, place.key),
        )
        for tile in _tiles(spec, deltas[0], params)
    ]
    _same(torch.cat(pieces), apply(deltas, place).flatten(), "tiles")


def _zeros_count_as_declared(spec: OpSpec, way: Vector) -> None:
    """Statistics of a whole model know tensors that nobody changes without reading them."""
    import torch

    params = {**spec.defaults(), "weights": [1.0] * len(way.deltas), **way.params}
    place = Place(name="t", size=36, layer=way.layer, layers=way.layers)
    deltas = _deltas(way, (4, 9))
    values = [deltas[0], *deltas] if spec.kind == "post" else deltas
    zeros, found = [torch.zeros_like(value) for value in values], list[Any]()
    for needs in spec.statistics:
        asked = needs.asked(params, 36)
        if needs.of_model(params) and asked:
            alike = getattr(needs, "of_zeros", ()) or (0.0,) * (2 * len(values))
            for tensor, value in zip(
                needs.of(zeros, place, params, tuple(found)), alike, strict=False
            ):
                _hold(bool((tensor == value).all()), f"zeros give {tensor}, not {value}")
        found.append(answer_of(needs, params, values, place, tuple(found)))


def _mask_depends_on_names_alone(spec: OpSpec, way: Vector) -> None:
    import torch

    deltas = [torch.linspace(1, 2, 4096).reshape(64, 64) for _ in way.deltas]
    drawing = {"density": 0.5, "noise": 0.5, "relative": False, "ratio": 0.5}
    params = {**way.params, **{k: v for k, v in drawing.items() if k in spec.parameters}}
    half = Vector(way.deltas, way.expect, params, way.weights, way.layer, way.layers)
    first = _call(spec, half, deltas, seed=1, name="x")
    _same(_call(spec, half, deltas, seed=1, name="x"), first, "the same seed")
    for other in ({"seed": 2, "name": "x"}, {"seed": 1, "name": "y"}):
        _hold(
            not torch.equal(_call(spec, half, deltas, **other), first), f"{other} changed nothing"
        )


def _is_unbiased(spec: OpSpec) -> None:
    import torch

    size, value = 1 << 18, 2.0
    result = merge_tensors(spec.name, [torch.full((512, size // 512), value)])
    error = abs(float(result.double().mean()) - value)
    bound = 5 * float(result.double().std()) / size**0.5
    _hold(error <= bound, f"the mean is off by {error}, more than five standard errors {bound}")


def _stays_finite(spec: OpSpec, way: Vector) -> None:
    import torch

    for size in (1e30, 1e-38, 1e-44):
        deltas = [delta * size for delta in _deltas(way, (4, 9))]
        result = _call(spec, way, deltas)
        _hold(bool(torch.isfinite(result).all()), f"entries of about {size} gave {result}")


def _copies_give_one(spec: OpSpec) -> None:
    import torch

    way = spec.vectors[0]
    required = {n: way.params[n] for n, p in spec.parameters.items() if p.required}
    delta = torch.randn((4, 9), generator=torch.Generator().manual_seed(5))
    most = spec.experts[1] or 3
    expected = delta if spec.kind == "combine" else merge_tensors(spec.name, [delta], **required)
    for count in range(2, most + 1):
        got = merge_tensors(spec.name, [delta] * count, **required)
        _close(got, expected, 1e-6, f"{count} equal experts")


def _same_on_gpu(spec: OpSpec, way: Vector) -> None:
    for shape in ((7,), (33, 129)):
        deltas = _deltas(way, shape)
        on_gpu = _call(spec, way, [delta.cuda() for delta in deltas], seed=4, name="x")
        _alike(spec, on_gpu.cpu(), _call(spec, way, deltas, seed=4, name="x"), "on the GPU")


def _properties(spec: OpSpec) -> Iterator[tuple[str, Callable[[OpSpec, Vector], None]]]:
    yield "leaves inputs alone", _leaves_inputs_alone
    yield "takes every shape", _takes_every_shape
    yield "computes in fp32", _computes_in_fp32
    yield "ignores strides", _ignores_strides
    yield "stays finite", _stays_finite
    if spec.space == "delta" or "space" in spec.parameters:
        yield "zero deltas give the base", _zero_deltas_give_the_base
    if spec.commutative:
        yield "order of experts", _order_of_experts
    if spec.kind != "preset":
        yield "tiled equals whole", _tiled_equals_whole
    if any(needs.whole or needs.scope for needs in spec.statistics):
        yield "zeros count as declared", _zeros_count_as_declared
    if spec.random:
        yield "mask depends on names alone", _mask_depends_on_names_alone
    yield "same on the GPU", _same_on_gpu


def _each(spec: OpSpec, check: Callable[[OpSpec, Vector], None]) -> Callable[[], None]:
    def run() -> None:
        for way in spec.vectors:
            try:
                check(spec, way)
            except Exception as error:
                raise AssertionError(f"{spec.name} with {dict(way.params)}: {error}") from error

    return run


def conformance_cases(op: str | OpSpec, *, gpu: bool = False) -> Iterator[Case]:
    """Yield everything that an op must hold to, as named callables.

    An op that reads statistic files describes itself and runs its vectors, where these hold
    statistics: nothing here knows what such a file holds for other shapes.

    Args:
        op: a registered op or preset, by name or spec.
        gpu: yield the case that needs a CUDA device too.
    """
    spec = get(op) if isinstance(op, str) else op
    yield Case(f"{spec.name}: describes itself", lambda: _describes_itself(spec))
    if spec.structural:
        return
    if not spec.calibration or all(way.calibration is not None for way in spec.vectors):
        yield Case(f"{spec.name}: vectors", lambda: _vectors(spec))
    if spec.calibration:
        return
    for name, check in _properties(spec):
        if check is _same_on_gpu and not gpu:
            continue
        yield Case(f"{spec.name}: {name}", _each(spec, check), gpu=check is _same_on_gpu)
    if spec.unbiased:
        yield Case(f"{spec.name}: is unbiased", lambda: _is_unbiased(spec))
    if spec.idempotent:
        yield Case(f"{spec.name}: copies give one", lambda: _copies_give_one(spec))


def pytest_cases(*ops: str | OpSpec) -> list[Any]:
    """Return the cases of these ops for `pytest.mark.parametrize`; GPU ones are marked `gpu`.

    Without a CUDA device the `gpu` cases are skipped, with the reason.
    """
    import pytest
    import torch

    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.gpu, absent] if case.gpu else [])
        for op in ops
        for case in conformance_cases(op, gpu=True)
    ]

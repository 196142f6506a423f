"""Statistics against the same sums over a whole model's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_lite.calibrate.collect import KINDS, collectors
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Samples, batches
from tests.calibrate.test_stream import loaded, some_samples, stream_of

Found = dict[str, Tensor]


def collect(folder: Path, samples: Samples, kind: str, **how: Any) -> Found:
    stream, weights = stream_of(folder)
    arranged = batches(samples, **how)
    (collector,) = collectors([kind], samples, weights)
    found: Found = {}
    hidden = stream.embed(arranged)
    for _ in stream.layers(arranged, hidden, watch=collector.watch, before=collector.before):
        found |= collector.take()
    return found


def inputs_of(folder: Path, samples: Samples, ends: str) -> dict[str, list[Tensor]]:
    """Run the whole model on each sample alone; return what modules of a name are given."""
    model = loaded(folder)
    found: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            found.setdefault(name, []).append(inputs[0].reshape(-1, inputs[0].shape[-1]))

        return hook

    for name, module in model.named_modules():
        if name.endswith(ends):
            module.register_forward_pre_hook(note(name))
    with torch.inference_mode():
        for sample in samples.samples:
            model(input_ids=torch.tensor([sample.ids]), use_cache=False)
    return found


@pytest.mark.parametrize("how", [{"size": 200}, {"size": 200, "side": "left"}, {"size": 1}])
def test_grams_are_sums_over_tokens_and_padding_is_never_counted(
    saved: dict[str, Path], how: dict[str, Any]
) -> None:
    """Shows F6, of padding."""
    samples = some_samples()

    found = collect(saved["qwen2"], samples, "gram", **how)

    expected = inputs_of(saved["qwen2"], samples, "_proj")
    assert found.keys() == {f"{name}.weight" for name in expected}
    for name, rows in expected.items():
        x = torch.cat(rows).double()
        assert len(x) == samples.tokens
        torch.testing.assert_close(
            found[f"{name}.weight"].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_router_inputs_are_those_of_the_feed_forward_network_by_domain(
    saved: dict[str, Path], family: str
) -> None:
    """Shows F6, of the space that routers see."""
    samples = some_samples()

    found = collect(saved[family], samples, "router", size=40)

    expected = inputs_of(saved[family], samples, ".mlp")
    domains = [sample.domain for sample in samples.samples]
    assert len(found) == 4 * len(expected)
    for name, rows in expected.items():
        for domain in (0, 1):
            x = torch.cat([r for r, d in zip(rows, domains, strict=True) if d == domain]).double()
            unit = (x / x.norm(dim=1, keepdim=True)).sum(0)
            for key, value in {"gram": x.T @ x, "sum": x.sum(0), "unit": unit}.items():
                torch.testing.assert_close(
                    found[f"{name}.{key}"][domain].double(), value, rtol=1e-4, atol=1e-4
                )
            assert found[f"{name}.count"][domain] == len(x)


def test_hidden_states_are_those_that_enter_a_layer_in_the_order_of_the_texts(
    saved: dict[str, Path],
) -> None:
    samples = some_samples()

    found = collect(saved["qwen3"], samples, "hidden", size=20, side="left")

    model = loaded(saved["qwen3"])
    for row, sample in enumerate(samples.samples):
        with torch.inference_mode():
            states = model(
                input_ids=torch.tensor([sample.ids]), output_hidden_states=True
            ).hidden_states[:-1]
        for layer, state in enumerate(states):
            name = f"model.layers.{layer}"
            torch.testing.assert_close(found[f"{name}.last"][row], state[0, -1])
            torch.testing.assert_close(found[f"{name}.mean"][row], state[0].mean(0))
            assert found[f"{name}.domain"].tolist() == [s.domain for s in samples.samples]


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_rates_follow_the_family_s_own_router(saved: dict[str, Path], family: str) -> None:
    samples = some_samples()

    found = collect(saved[family], samples, "rates", size=40)

    model = loaded(saved[family])
    choices: dict[str, list[Any]] = {}
    norms: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(
                lambda module, given, out, name=name: choices.setdefault(name, []).append(out)
            )
    with torch.inference_mode():
        for sample in samples.samples:
            model(input_ids=torch.tensor([sample.ids]), use_cache=False)
    inputs = inputs_of(saved[family], samples, ".mlp")
    for name, outputs in choices.items():
        logits, weights, chosen = (torch.cat([one[i] for one in outputs]) for i in range(3))
        experts = logits.shape[1]
        picked = torch.nn.functional.one_hot(chosen, experts).sum(1)
        assert torch.equal(found[f"{name}.count"].sum(0).long(), picked.sum(0))
        assert torch.equal(found[f"{name}.together"].long(), picked.T @ picked)
        given = torch.zeros(len(logits), experts).scatter_(1, chosen, weights)
        torch.testing.assert_close(found[f"{name}.weight"].float(), given.sum(0))
        z = logits.double()
        torch.testing.assert_close(found[f"{name}.logit_gram"], z.T @ z, rtol=1e-4, atol=1e-4)
        norms = alone(model, name, torch.cat(inputs[name.removesuffix(".gate")]), picked, given)
        for key, value in norms.items():
            torch.testing.assert_close(found[f"{name}.{key}"].float(), value, rtol=1e-4, atol=1e-4)


def alone(model: Any, name: str, x: Tensor, picked: Tensor, given: Tensor) -> Found:
    """Return sums over the norms of what each expert says, from its matrices."""
    experts = model.get_submodule(name.removesuffix(".gate")).experts
    rows = []
    for expert in range(picked.shape[1]):
        gate, up = (x @ experts.gate_up_proj[expert].T).chunk(2, -1)
        rows.append(
            ((torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T).norm(dim=1)
        )
    said = torch.stack(rows, 1).detach() * picked
    return {
        "norm": said.sum(0),
        "norm_square": said.square().sum(0),
        "norm_max": said.max(0).values,
        "weighted_norm": (said * given).sum(0),
    }


def test_dense_layers_have_no_rates(saved: dict[str, Path]) -> None:
    assert collect(saved["llama"], some_samples(), "rates") == {}


def test_a_collector_says_what_it_holds(saved: dict[str, Path]) -> None:
    samples = some_samples()
    stream: Stream = stream_of(saved["llama"])[0]
    for kind in ("gram", "router", "hidden"):
        found = collect(saved["llama"], samples, kind)
        held = KINDS[kind].held(stream.skeleton, len(samples.samples), 2)
        last = sum(t.nbytes for name, t in found.items() if ".layers.2." in name)
        assert held >= last / 3  # queries, keys and values share a sum

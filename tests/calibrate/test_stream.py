"""The pass with one layer in memory gives what the whole model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite.calibrate.losses import one_by_one
from mergekit_lite.calibrate.skeleton import build
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch, Sample, Samples, batches
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.sources import resolve
from tests.calibrate.conftest import ENCODERS, FAMILIES, SIZES, VOCABULARY
from tests.checkpoints import read_weights, write_weights

LENGTHS = (9, 5, 1, 12, 7)


def some_samples(lengths: tuple[int, ...] = LENGTHS) -> Samples:
    random = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, VOCABULARY, (n,), generator=random).tolist() for n in lengths]
    return Samples(
        tuple(Sample(tuple(i), n % 2, 3 * len(i)) for n, i in enumerate(ids)), ("a", "b")
    )


def stream_of(folder: Path) -> tuple[Stream, Weights]:
    skeleton = build(folder)
    weights = Weights(skeleton, {"model": resolve(str(folder), relative_to=Path())})
    return Stream(skeleton, weights), weights


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def whole(model: Any, batch: Batch) -> Any:
    with torch.inference_mode():
        return model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            output_hidden_states=True,
            use_cache=False,
        )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_hidden_state_and_logit_is_that_of_the_whole_model(
    saved: dict[str, Path], family: str, side: str
) -> None:
    arranged = batches(some_samples(), size=30, side=side)
    stream, weights = stream_of(saved[family])
    hidden = stream.embed(arranged)
    passed = [list(hidden)]
    for _ in stream.layers(arranged, hidden):
        passed.append(list(hidden))
    weights.load(None)

    model = loaded(saved[family])
    for number, batch in enumerate(arranged):
        expected = whole(model, batch)
        for layer, states in enumerate(expected.hidden_states[:-1]):
            torch.testing.assert_close(
                passed[layer][number][batch.mask], states[batch.mask], rtol=1e-6, atol=1e-6
            )
        logits = stream.logits(batch, hidden[number])
        torch.testing.assert_close(
            logits[batch.mask], expected.logits[batch.mask], rtol=1e-5, atol=1e-5
        )
    weights.close()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ENCODERS)
def test_labels_of_texts_are_those_of_the_whole_model(
    labelling: dict[str, Path], family: str, side: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    samples = some_samples()
    arranged = batches(samples, size=30, side=side if family == "llama" else "right")
    stream, weights = stream_of(labelling[family])
    hidden = stream.embed(arranged)
    for _ in stream.layers(arranged, hidden):
        pass
    weights.load(None)

    model = AutoModelForSequenceClassification.from_pretrained(labelling[family]).eval()
    assert stream.skeleton.head == "labels"
    for row, one, (states,) in one_by_one(arranged, hidden):
        with torch.inference_mode():
            expected = model(torch.tensor([samples.samples[row].ids])).logits
        torch.testing.assert_close(stream.logits(one, states), expected, rtol=1e-4, atol=1e-5)
    weights.close()


def test_a_pass_that_begins_at_a_later_layer_is_the_same(saved: dict[str, Path]) -> None:
    arranged = batches(some_samples(), size=30)
    stream, weights = stream_of(saved["bloom"])
    hidden = stream.embed(arranged)
    passed = [list(hidden) for _ in stream.layers(arranged, hidden)]

    again, others = stream_of(saved["bloom"])
    others.load(None)
    others.drop_vocabulary()
    states = passed[0]
    for _ in again.layers(arranged, states, first=1):
        pass
    for found, expected in zip(states, passed[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights.close()
    others.close()


def test_what_is_below_a_head_for_tokens_is_run(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    config = AutoConfig.for_model("bert", **SIZES)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    arranged = batches(some_samples(), size=30)
    stream, weights = stream_of(tmp_path)
    hidden = stream.embed(arranged)
    for _ in stream.layers(arranged, hidden):
        pass

    assert stream.skeleton.head == "none"
    model = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    for number, batch in enumerate(arranged):
        with torch.inference_mode():
            expected = model(batch.ids, attention_mask=batch.mask.long()).last_hidden_state
        torch.testing.assert_close(hidden[number][batch.mask], expected[batch.mask])
    weights.close()


def test_one_layer_at_a_time_is_in_memory(saved: dict[str, Path]) -> None:
    stream, _ = stream_of(saved["mixtral"])
    arranged = batches(some_samples())
    hidden = stream.embed(arranged)

    assert stream.skeleton.model.get_input_embeddings().weight.is_meta
    for place in stream.layers(arranged, hidden):
        here = [
            other.index
            for other in stream.skeleton.layers
            if any(not weight.is_meta for weight in other.module.parameters())
        ]
        assert here == [place.index]


def test_a_layer_that_lacks_weights_is_told_by_name(saved: dict[str, Path], tmp_path: Path) -> None:
    tensors = read_weights(saved["llama"])
    del tensors["model.layers.1.mlp.up_proj.weight"]
    for file in saved["llama"].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_weights(tmp_path, tensors)
    stream, _ = stream_of(tmp_path)
    arranged = batches(some_samples())

    with pytest.raises(
        DataError, match=r"lacks 1 weights .*`model\.layers\.1\.mlp\.up_proj\.weight`"
    ):
        list(stream.layers(arranged, stream.embed(arranged)))


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(RecipeError, match="`vit` is no causal language model"):
        build(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nobody-has-this"}')
    with pytest.raises(DataError, match="its config cannot be used"):
        build(tmp_path)

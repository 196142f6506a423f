"""Texts as batches of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.calibrate.texts import Text
from mergekit_lite.calibrate.tokens import Sample, Samples, batches, load_tokenizer, tokenise
from mergekit_lite.errors import DataError, RecipeError


class Words:
    """A tokenizer with an id for each word, `0 1 2 ...`, and 63 before them as a special token."""

    chat_template: str | None = None

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        return {"input_ids": [*([63] if add_special_tokens else []), *map(int, text.split())]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(str(i) for i in ids if i != 63)

    def apply_chat_template(self, turns: list[dict[str, str]], tokenize: bool) -> str:
        return " ".join(f"9 {turn['content']}" for turn in turns)


def test_running_text_is_cut_at_line_ends_and_other_text_is_cut_off() -> None:
    running = Text("1 2\n3\n4 5 6\n", "a", "", is_running=True)
    single = Text("7 8 9 10", "a", "")

    found = tokenise([running, single], Words(), length=5)

    assert [sample.ids for sample in found.samples] == [
        (63, 1, 2, 3),
        (63, 4, 5, 6),
        (63, 7, 8, 9, 10),
    ]
    assert [sample.nbytes for sample in found.samples] == [6, 6, 8]
    assert tokenise([single], Words(), length=3).samples[0] == Sample((63, 7, 8), 0, 3)


def test_each_domain_has_its_share_and_what_is_left_out_is_counted() -> None:
    texts = [Text("1 2", "a", ""), Text("3 4", "a", ""), Text("5 6", "b", "")]

    found = tokenise(texts, Words(), max_tokens=4)

    assert [(sample.ids, sample.domain) for sample in found.samples] == [
        ((63, 1, 2), 0),
        ((63, 5, 6), 1),
    ]
    assert (found.skipped, found.tokens, found.domains) == (1, 6, ("a", "b"))


def test_conversations_go_through_the_chat_template_or_are_refused() -> None:
    talk = Text("", "a", "talk.jsonl:1", ({"role": "user", "content": "1 2"},))
    words = Words()
    with pytest.raises(RecipeError, match=r"talk\.jsonl:1.*no chat template"):
        tokenise([talk], words)

    words.chat_template = "there"
    assert tokenise([talk], words).samples[0].ids == (9, 1, 2)


def test_a_tokenizer_of_another_model_and_a_domain_without_tokens_are_refused() -> None:
    texts = [Text("1 7", "a", ""), Text("1 2 3 4", "b", "")]

    with pytest.raises(DataError) as caught:
        tokenise(texts, Words(), max_tokens=4, vocabulary=32)

    assert [problem.what for problem in caught.value.problems] == [
        "no token is left of `b`",
        "the tokenizer gives the id 63, the model's embedding has 32 rows",
    ]
    with pytest.raises(DataError, match="there is no text"):
        tokenise([], Words())


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 40),
    st.sampled_from(["left", "right"]),
    st.booleans(),
)
def test_batches_hold_every_sample_once_and_their_masks_tell_padding(
    lengths: list[int], size: int, side: str, in_order: bool
) -> None:
    samples = Samples(tuple(Sample(tuple(range(1, n + 1)), n % 2, n) for n in lengths), ("a", "b"))

    found = batches(samples, size=size, side=side, in_order=in_order)

    rows = [row for batch in found for row in batch.rows]
    assert sorted(rows) == list(range(len(lengths)))
    if in_order:
        assert rows == sorted(rows)
    for batch in found:
        assert batch.mask.numel() <= size or len(batch.rows) == 1
        for ids, mask, row, last, domain in zip(
            batch.ids, batch.mask, batch.rows, batch.last(), batch.domains, strict=True
        ):
            assert tuple(ids[mask].tolist()) == samples.samples[row].ids
            assert torch.equal(mask, mask.sort(descending=side == "right", stable=True).values)
            assert ids[last] == samples.samples[row].ids[-1]
            assert domain == samples.samples[row].domain

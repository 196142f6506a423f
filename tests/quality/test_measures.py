"""Numbers and their intervals, by hand and against what must hold of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.quality.measures import measured
from mergekit_lite.quality.scores import ChoiceScore, Likeness, TextScore, score_of, score_record

LN2 = math.log(2)
TEXT = TextScore((8 * LN2, 24 * LN2), (2, 6), (4, 12))
CHOICE = ChoiceScore((0, 1, 1, 2), (0, 1, 0, 2))


def test_bits_and_perplexity_by_hand() -> None:
    assert TEXT.bits_per_byte == pytest.approx(2.0)
    assert TEXT.perplexity == pytest.approx(2**4)
    found = measured("bits_per_byte", TEXT)
    # Both windows need two bits a byte, so every draw does.
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert measured("perplexity", TEXT).value == pytest.approx(16.0)


def test_accuracy_and_flips_by_hand() -> None:
    earlier = ChoiceScore((0, 0, 0, 2), (0, 1, 0, 2))
    assert CHOICE.accuracy == 0.75
    assert measured("accuracy", CHOICE).value == 0.75
    # The third was right and is wrong now; the second was wrong and is right now.
    assert measured("flips", CHOICE, earlier).value == 0.25
    assert measured("flips", earlier, CHOICE).value == 0.25


def test_recovery_is_the_models_share_of_a_score_and_of_a_loss_the_other_way() -> None:
    better = TextScore((4 * LN2, 12 * LN2), (2, 6), (4, 12))
    assert measured("recovery", TEXT, better).value == pytest.approx(0.5)
    assert measured("recovery", better, TEXT).value == pytest.approx(2.0)
    all_right = ChoiceScore((0, 1, 0, 2), (0, 1, 0, 2))
    assert measured("recovery", CHOICE, all_right).value == 0.75


def test_likeness_by_hand() -> None:
    like = Likeness((1.0, 3.0), (1, 2), (2, 6))
    assert measured("kl", TEXT, like).value == pytest.approx(0.5)
    assert measured("agreement", TEXT, like).value == pytest.approx(3 / 8)


def test_the_interval_of_an_accuracy_is_that_of_its_binomial() -> None:
    score = ChoiceScore((0,) * 50 + (1,) * 50, (0,) * 100)
    found = measured("accuracy", score)
    # 1.96 standard errors of 0.05.
    assert found.low == pytest.approx(0.402, abs=0.011)
    assert found.high == pytest.approx(0.598, abs=0.011)
    assert found == measured("accuracy", score)


def test_pairing_takes_out_what_windows_have_in_common() -> None:
    hard = tuple(float(n) for n in range(1, 31))
    one = TextScore(hard, (1,) * 30, (1,) * 30)
    other = TextScore(tuple(1.01 * n for n in hard), (1,) * 30, (1,) * 30)
    found = measured("recovery", other, one)
    assert found.low == pytest.approx(found.high) == pytest.approx(1 / 1.01)
    alone = measured("bits_per_byte", one)
    assert alone.high > 1.2 * alone.low


def test_one_unit_has_no_interval() -> None:
    found = measured("bits_per_byte", TextScore((LN2,), (1,), (1,)))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("kind", ["accuracy", "flips", "kl"])
def test_a_number_that_the_data_does_not_have_is_refused(kind: str) -> None:
    with pytest.raises(RecipeError, match=f"`{kind}` is a number of"):
        measured(kind, TEXT, TEXT)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(0.1, 9), st.integers(1, 9)), min_size=2, max_size=9))
def test_the_value_lies_between_the_best_and_the_worst_unit(units: list[tuple[float, int]]) -> None:
    score = TextScore(
        tuple(n for n, _ in units), tuple(t for _, t in units), tuple(t for _, t in units)
    )
    found = measured("bits_per_byte", score)
    each = [n / t / LN2 for n, t in units]
    assert min(each) - 1e-9 <= found.low <= found.high <= max(each) + 1e-9
    assert score_of(score_record(score)) == score

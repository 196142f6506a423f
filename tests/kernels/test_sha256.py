"""sha256 of two messages together, against hashlib."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.kernels import sha256, warm

pytestmark = pytest.mark.skipif(
    not sha256.is_possible(), reason="the processor has no instructions for sha256"
)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm.compile_kernels([sha256.compress_two])
    sha256.compress_one(sha256.new_states(), 0, np.zeros(64, np.uint8))  # loaded, too


def test_constants_are_those_of_the_standard() -> None:
    assert sha256.CONSTANTS[:3] == [0x428A2F98, 0x71374491, 0xB5C0FBCF]
    assert sha256.CONSTANTS[-1] == 0xC67178F2
    assert sha256.START[0] == 0x6A09E667
    assert sha256.START[-1] == 0x5BE0CD19


@given(rest=st.binary(max_size=63), blocks=st.integers(0, 3))
def test_padding_fills_blocks_and_ends_with_the_length(rest: bytes, blocks: int) -> None:
    nbytes = 64 * blocks + len(rest)
    padded = sha256.padding(rest, nbytes)
    assert len(padded) % 64 == 0
    assert padded.startswith(rest + b"\x80")
    assert padded.endswith(struct.pack(">Q", 8 * nbytes))
    assert len(padded) - len(rest) < 64 + 9


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_two_messages_have_their_own_digests(first: bytes, second: bytes) -> None:
    states = sha256.new_states()
    whole = min(len(first), len(second)) // 64
    both = [np.frombuffer(bytearray(m[: 64 * whole]), np.uint8) for m in (first, second)]
    sha256.compress_two(states, *both, whole)
    for slot, message in enumerate((first, second)):
        rest = sha256.padding(message[64 * whole :], len(message))
        sha256.compress_one(states, slot, np.frombuffer(rest, np.uint8))
    digests = [sha256.hexdigest(states, slot) for slot in (0, 1)]
    assert digests == [hashlib.sha256(m).hexdigest() for m in (first, second)]


def test_one_message_leaves_the_other_alone() -> None:
    states = sha256.new_states()
    sha256.compress_one(states, 0, np.full(128, 7, np.uint8))
    assert (states[1] == sha256.new_states()[1]).all()
    assert (states[0] != sha256.new_states()[0]).any()

"""Models with differing vocabularies, by both tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import perturbed, read_weights, tiny_llama, write_tokenizer, write_weights
from tests.peer.conftest import Job, Peer, Weights

pytestmark = pytest.mark.peer
Ours = Callable[..., Weights]

MERGE = """
merge_method: task_arithmetic
base_model: base
models:
  - {model: more, parameters: {weight: 0.7}}
  - {model: plain, parameters: {weight: 0.4}}
"""

SOURCES = {
    "base": "tokenizer_source: base\n",
    "union": "tokenizer_source: union\n",
    "model": "tokenizer_source: more\n",
    "padded": "tokenizer: {source: union, pad_to_multiple_of: 16}\n",
    "tokens": """
tokenizer:
  source: union
  tokens:
    w64: {source: {kind: model_token, model: base, token: w5}}
    w65: {source: {kind: model_token, model: plain, token_id: 7}, force: true}
    w9: {source: more, force: true}
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a base, a model with two tokens more, and one with the base's."""
    root = tmp_path_factory.mktemp("vocabulary")
    base = tiny_llama(root / "base", dtype="float32")
    more, plain = (
        perturbed(base, root / name, seed=seed, scale=0.02)
        for seed, name in enumerate(("more", "plain"), start=1)
    )
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(3)) * 0.1
    weights = read_weights(more)
    wider = {
        name: torch.cat([value, rows])
        for name, value in weights.items()
        if "embed_tokens" in name or "lm_head" in name
    }
    write_weights(more, {**weights, **wider})
    config = json.loads((more / "config.json").read_text())
    (more / "config.json").write_text(json.dumps({**config, "vocab_size": 66}))
    write_tokenizer(more, 66)
    assert plain.exists()
    return root


@pytest.fixture(scope="module")
def theirs(place: Path, tmp_path_factory: pytest.TempPathFactory, peer_python: str) -> Peer:
    """Return what mergekit makes of all of it."""
    found = Peer(peer_python, tmp_path_factory.mktemp("mergekit-vocabulary"))
    found.run(
        [Job(name, f"{MERGE}dtype: float32\n{text}", place) for name, text in SOURCES.items()]
    )
    return found


def by_token(folder: Path) -> Weights:
    """Return a model's weights, with the rows of its tokens in their order and then the padding.

    In which order mergekit adds tokens is up to a hash table.
    """
    stored = json.loads((folder / "tokenizer.json").read_text())
    ids: dict[str, int] = dict(stored["model"]["vocab"])
    ids |= {entry["content"]: entry["id"] for entry in stored["added_tokens"]}
    used = [ids[token] for token in sorted(ids)]
    return {
        name: value[[*used, *sorted({*range(len(value))} - {*used})]]
        if "embed_tokens" in name or "lm_head" in name
        else value
        for name, value in read_weights(folder).items()
    }


@pytest.mark.parametrize("name", list(SOURCES))
def test_the_same_rows(name: str, theirs: Peer, place: Path, ours: Ours, tmp_path: Path) -> None:
    assert theirs.errors[name] == "", theirs.errors[name]
    other = by_token(theirs.out(name))
    ours(MERGE + SOURCES[name], place)
    mine = by_token(tmp_path / "out")
    assert mine.keys() == other.keys()
    for tensor, value in other.items():
        near = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(
            mine[tensor], value, rtol=1e-5, atol=near, msg=lambda m, t=tensor: f"{t}: {m}"
        )

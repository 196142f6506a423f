"""Texts as batches of token ids, with masks that tell tokens from padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.texts import Text
from mergekit_lite.errors import DataError, Problem, RecipeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """The token ids of one text, or of one piece of a running text.

    Attributes:
        ids: token ids, one or more.
        domain: index into `Samples.domains`.
        nbytes: bytes of the text, for losses by byte.
        types: which of two texts each token is of, where the tokenizer tells.
    """

    ids: tuple[int, ...]
    domain: int
    nbytes: int
    types: tuple[int, ...] = ()


@dataclass(frozen=True)
class Samples:
    """All token ids of a calibration.

    Attributes:
        samples: in the order of the texts.
        domains: names, in the order in which they first appear.
        skipped: texts that had no token, or came after a domain had its share of tokens.
    """

    samples: tuple[Sample, ...]
    domains: tuple[str, ...]
    skipped: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens of all samples."""
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def digest(self) -> str:
        """sha256 over the ids and domains, which is all that a model sees of the texts."""
        digest = hashlib.sha256("\n".join(self.domains).encode())
        for sample in self.samples:
            digest.update(f"\n{sample.domain}:{','.join(map(str, sample.ids))}".encode())
        return digest.hexdigest()

    def only(self, domain: int) -> Samples:
        """Return those of one domain; all domains keep their index."""
        return replace(self, samples=tuple(s for s in self.samples if s.domain == domain))


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        ids: (samples, longest), int64; what stands for padding is never looked at.
        mask: (samples, longest), bool: where there is a token.
        domains: (samples,), int64.
        rows: index of each sample into `Samples.samples`.
        types: (samples, longest), int64: which of two texts a token is of; None where no sample
            has two.
    """

    ids: Tensor
    mask: Tensor
    domains: Tensor
    rows: tuple[int, ...]
    types: Tensor | None = None

    def last(self) -> Tensor:
        """Return the position of the last token of each sample, wherever its padding is."""
        import torch

        positions = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (self.mask * positions).argmax(1)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model's folder.

    Raises:
        DataError: there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(
            f"no tokenizer can be loaded: {str(error).splitlines()[0]}",
            str(folder),
            "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights",
        ) from error


def tokenise(
    texts: Sequence[Text],
    tokenizer: Any,
    *,
    length: int = 512,
    max_tokens: int = 16384,
    vocabulary: int | None = None,
    special: bool = True,
) -> Samples:
    """Return texts as token ids, special tokens as the tokenizer puts them.

    Args:
        texts: what to read.
        tokenizer: of transformers.
        length: most tokens of a sample. A running text is cut at line ends into samples of as
            many whole lines as fit; what is longer otherwise is cut off.
        max_tokens: of each domain; texts after that are left out.
        vocabulary: rows of the model's embedding, which no id may reach.
        special: let the tokenizer put special tokens around texts that are no conversations.

    Raises:
        DataError: no text is left, or an id is outside the vocabulary.
        RecipeError: there are conversations and the tokenizer has no chat template.
    """
    domains = tuple(dict.fromkeys(text.domain for text in texts))
    samples: list[Sample] = []
    used = dict.fromkeys(range(len(domains)), 0)
    skipped = 0
    for text in texts:
        domain = domains.index(text.domain)
        for ids, nbytes in _pieces(text, tokenizer, length, special):
            if not ids or used[domain] + len(ids) > max_tokens:
                skipped += 1
                if ids and text.is_running:
                    break
                continue
            used[domain] += len(ids)
            samples.append(Sample(tuple(ids), domain, nbytes))
    _require(samples, domains, vocabulary)
    return Samples(tuple(samples), domains, skipped)


def batches(
    samples: Samples, *, size: int = 2048, side: str = "right", in_order: bool = False
) -> list[Batch]:
    """Return samples side by side, the longest first, so that there is little padding.

    Args:
        samples: what to arrange.
        size: most entries of a batch, padding counted; one sample may have more.
        side: where padding goes, `right` or `left`.
        in_order: leave the samples in their order.
    """
    lengths = [len(sample.ids) for sample in samples.samples]
    order = sorted(range(len(lengths)), key=lambda row: 0 if in_order else -lengths[row])
    groups: list[list[int]] = []
    for row in order:
        longest = max(lengths[row], *(lengths[r] for r in groups[-1])) if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= size:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_side_by_side(samples.samples, rows, side) for rows in groups]


def _side_by_side(samples: Sequence[Sample], rows: Sequence[int], side: str) -> Batch:
    import torch

    chosen = [samples[row] for row in rows]
    longest = max(len(sample.ids) for sample in chosen)
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    types = torch.zeros_like(ids) if any(sample.types for sample in chosen) else None
    for number, sample in enumerate(chosen):
        first = longest - len(sample.ids) if side == "left" else 0
        place = slice(first, first + len(sample.ids))
        ids[number, place] = torch.tensor(sample.ids)
        mask[number, place] = True
        if types is not None and sample.types:
            types[number, place] = torch.tensor(sample.types)
    domains = torch.tensor([sample.domain for sample in chosen])
    return Batch(ids, mask, domains, tuple(rows), types)


def _pieces(
    text: Text, tokenizer: Any, length: int, special: bool
) -> Iterator[tuple[list[int], int]]:
    if text.is_running:
        yield from _windows(text.text, tokenizer, length)
    elif text.messages:
        # The template writes the special tokens itself.
        yield _cut(tokenizer, _conversation(text, tokenizer), False, length)
    else:
        yield _cut(tokenizer, text.text, special, length)


def _cut(tokenizer: Any, text: str, special: bool, length: int) -> tuple[list[int], int]:
    """Return the first ids of a text, and how many bytes of it they stand for."""
    ids = _ids(tokenizer, text, special)
    if len(ids) > length:
        ids = ids[:length]
        text = tokenizer.decode(ids, skip_special_tokens=True)
    return ids, len(text.encode())


def _windows(text: str, tokenizer: Any, length: int) -> Iterator[tuple[list[int], int]]:
    """Cut a running text at line ends into pieces of at most `length` tokens."""
    window, used = "", 0
    for line in text.splitlines(keepends=True):
        count = len(_ids(tokenizer, line, False))
        # Two for the special tokens at the ends.
        if window and used + count + 2 > length:
            yield _cut(tokenizer, window, True, length)
            window, used = "", 0
        window, used = window + line, used + count
    if window.strip():
        yield _cut(tokenizer, window, True, length)


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _conversation(text: Text, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "the data holds conversations and the tokenizer has no chat template",
            text.where,
            "give plain `text`, or put a chat_template.jinja beside the tokenizer",
        )
    turns: list[Mapping[str, Any]] = list(text.messages)
    whole: str = tokenizer.apply_chat_template(turns, tokenize=False)
    return whole


def _require(samples: Sequence[Sample], domains: Sequence[str], vocabulary: int | None) -> None:
    with_tokens = {sample.domain for sample in samples}
    problems = [
        Problem(f"no token is left of `{name}`", name, "give longer texts, or a larger share")
        for index, name in enumerate(domains)
        if index not in with_tokens
    ]
    highest = max((max(sample.ids) for sample in samples), default=0)
    if vocabulary is not None and highest >= vocabulary:
        problems.append(
            Problem(
                f"the tokenizer gives the id {highest}, the model's embedding has {vocabulary}"
                " rows",
                "tokenizer",
                "the tokenizer is not this model's: give the one that it was trained with",
            )
        )
    if problems or not samples:
        raise DataError(problems or [Problem("there is no text", hint="give --data FILE")])

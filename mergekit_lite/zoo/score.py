"""Bits per byte of models on the held-out text of each domain."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.calibrate.windows import WINDOW_BYTES, windows
from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.sources.zoo import SCHEME, zoo_folder
from mergekit_lite.zoo.catalog import EXPERTS, held_out_text


@dataclass(frozen=True)
class Score:
    """How well one model predicts the text of one domain.

    Attributes:
        model: the reference it was asked for by.
        domain: name of the domain.
        bits_per_byte: mean bits it needs for a byte of the text; lower is better.
        windows: windows of text scored, each predicted from its own beginning.
        nbytes: bytes of text scored.
    """

    model: str
    domain: str
    bits_per_byte: float
    windows: int
    nbytes: int


def text_windows(domain: str, split: str, count: int) -> list[str]:
    """Return the first `count` windows of a domain's held-out text.

    A window is a run of whole lines of 512 bytes or more; cutting by bytes and not by tokens gives
    every model the same text, whatever its tokenizer.
    """
    text = held_out_text(domain, split).read_text(encoding="utf-8")
    found = [window for window in windows(text) if len(window.encode()) >= WINDOW_BYTES]
    if len(found) >= count:
        return found[:count]
    raise RecipeError(
        f"the {split} text of `{domain}` has {len(found)} windows, fewer than {count}",
        hint=f"give `--windows {len(found)}` or fewer",
    )


def folder_of(reference: str) -> Path:
    """Return the folder of a model to score: a `zoo:NAME` or a local folder."""
    if reference.startswith(SCHEME):
        return zoo_folder(reference)
    folder = Path(reference)
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise SourceError(
            "no model there: neither config.json nor adapter_config.json",
            reference,
            "give a folder that transformers or PEFT wrote, or a `zoo:NAME`",
        )
    return folder


def origin(folder: Path) -> str | None:
    """Return what a model, or the base of an adapter, says it was dequantised from, or None."""
    is_adapter = (folder / "adapter_config.json").is_file()
    file = (zoo_folder("zoo:smol") if is_adapter else folder) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    value = config.get("dequantised_from")
    return value if isinstance(value, str) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the libraries say while loading; what goes wrong is still raised."""
    from transformers import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(folder: Path) -> tuple[Any, Any]:
    """Load a checkpoint, or an adapter on the zoo's base, in fp32; return it and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    is_adapter = (folder / "adapter_config.json").is_file()
    home = zoo_folder("zoo:smol") if is_adapter else folder
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(home)
        model = AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32)
        if is_adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval(), tokenizer


def bits(model: Any, tokenizer: Any, window: str) -> float:
    """Return the bits that `model` needs for the bytes of `window`, after a line break."""
    import torch

    tokens = tokenizer("\n").input_ids + tokenizer(window).input_ids
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum")
    return float(loss) / math.log(2)


def score(
    references: Sequence[str],
    *,
    domains: Sequence[str] = tuple(EXPERTS),
    split: str = "test",
    windows: int = 8,
    report: Callable[[str, str], None] = lambda model, domain: None,
) -> list[Score]:
    """Score models one after the other, so that one at a time is in memory.

    Args:
        references: `zoo:NAME`, folders that transformers loads, or adapters of the zoo's base.
        domains: names of the domains.
        split: held-out text to score on, `test` or `validation`.
        windows: windows of each domain; a window has 512 bytes or a little more.
        report: called with model and domain before each is scored.

    Raises:
        SourceError: a model is not there.
        DataError: a model gives a loss that is no finite number.
    """
    texts = {domain: text_windows(domain, split, windows) for domain in domains}
    folders = [(reference, folder_of(reference)) for reference in references]
    found = []
    for reference, folder in folders:
        model, tokenizer = load(folder)
        for domain, text in texts.items():
            report(reference, domain)
            needed = math.fsum(bits(model, tokenizer, window) for window in text)
            if not math.isfinite(needed):
                raise DataError(f"the loss on `{domain}` is {needed}", reference)
            size = sum(len(window.encode()) for window in text)
            found.append(Score(reference, domain, needed / size, len(text), size))
    return found

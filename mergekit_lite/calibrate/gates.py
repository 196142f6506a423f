"""Runs the texts of a recipe's experts, for gates that are made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.changes import changes_of
from mergekit_lite.calibrate.collect import Collector
from mergekit_lite.calibrate.collect.inputs import InputCollector
from mergekit_lite.calibrate.estimate import require_memory
from mergekit_lite.calibrate.experts import BASE, DenseView
from mergekit_lite.calibrate.host import Host
from mergekit_lite.calibrate.losses import sample_losses, text_vectors
from mergekit_lite.calibrate.run import Prepared, Settings, measure, model_digest, prepare, sentence
from mergekit_lite.calibrate.skeleton import Skeleton, build
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.texts import Text, prompts, read_texts
from mergekit_lite.calibrate.tokens import Samples, batches, load_tokenizer, tokenise
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import DataError
from mergekit_lite.moe.gates._measure import LayerSums, Reading, Sums, Topic
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mergekit_lite.sources import Model

    Array = NDArray[np.float64]
    Pass = Iterator[tuple[int, Mapping[str, Mapping[str, Tensor]], list[Tensor]]]

_ALL = 1 << 30


class Measurer:
    """Runs texts through the routed model that is being made, before it is there.

    All that is not routed is as in the result. Feed-forward layers are the base's, or those of one
    expert everywhere.

    Args:
        plan: of the routed model.
        models: its inputs, opened.
        host: on which texts are run.
    """

    def __init__(self, plan: Plan, models: Mapping[str, Model], host: Host) -> None:
        self._base, self._host = models[BASE], host
        self._view = DenseView(plan, models)

    def sums(self, topics: Sequence[Topic], reading: Reading) -> Sums:
        """Run texts and take down what routers are shown of them."""
        settings = self._settings(reading)
        texts = _texts(topics)
        if reading.labels == "perplexity":
            texts = _once(texts)
        prepared = prepare(self._base, texts, ["router"], settings)
        self._host.accept(prepared, "running texts for the gates")
        facts = {**_facts(self._base, prepared, reading), "rest": self._rest(prepared)}
        if reading.labels == "perplexity":
            prepared = self._relabelled(prepared, topics, settings)
        ways: list[tuple[Prepared, int | None]] = [(prepared, None)]
        if reading.through == "expert":
            ways = [
                (_with(prepared, prepared.samples.only(index), settings), topic.expert)
                for index, topic in enumerate(topics)
            ]
        return Sums(self._together(ways, reading.sample), facts)

    def changes(self, topic: Topic, reading: Reading) -> Iterator[tuple[int, Array, Array]]:
        """Run a topic's texts through its own expert; see `Measure`."""
        prepared = self._prepared([topic], reading)
        # Inputs in two precisions, and what they are multiplied with.
        held = prepared.samples.tokens * prepared.skeleton.width * (4 + 8 + 8)
        require_memory(replace(prepared.estimate, sums=held), self._host.max_memory)
        self._host.say(f"training a gate for `{topic.name}`: {sentence(prepared)}")
        return changes_of(prepared, self._view, topic.expert)

    def facts(self, topics: Sequence[Topic], reading: Reading) -> Mapping[str, Any]:
        """Return what the manifest says of texts that are run in this way."""
        return _facts(self._base, self._prepared(topics, reading), reading)

    def _rest(self, prepared: Prepared) -> str:
        """Return a digest of what is not routed: `base` where all of it is the base's."""
        if not self._view.merged:
            return BASE
        digest = hashlib.sha256()
        with ExitStack() as stack:
            weights = self._weights(stack, prepared, None)
            for name in self._view.merged:
                digest.update(f"{name}\n".encode())
                digest.update(weights.read(name).numpy().data)
        return digest.hexdigest()

    def _settings(self, reading: Reading) -> Settings:
        device = self._host.device
        return Settings(length=reading.length, max_tokens=reading.tokens, device=device)

    def _prepared(self, topics: Sequence[Topic], reading: Reading) -> Prepared:
        return prepare(self._base, _texts(topics), [], self._settings(reading))

    def last_states(self, topics: Sequence[Topic], *, average: bool = False) -> list[Tensor]:
        """Return what enters the base's decoder layers at the last token of each topic's prompts.

        See `Measure`. Prompts begin with the tokenizer's first token, which is put there as text.
        """
        import torch

        tokenizer = load_tokenizer(self._base.root)
        settings = Settings(_ALL, _ALL, device=self._host.device, dtype="bfloat16")
        with ExitStack() as stack:
            running = []
            for topic in topics:
                lines = prompts("all", _begun(topic, tokenizer))
                prepared = prepare(self._base, lines, ["hidden"], settings)
                samples = tokenise(lines, tokenizer, length=_ALL, max_tokens=_ALL, special=False)
                together = batches(samples, size=_ALL, side="left", in_order=True)
                prepared = replace(prepared, samples=samples, batches=tuple(together))
                running.append(self._pass(stack, prepared, None, "hidden"))
            found: list[list[Tensor]] = [[] for _ in topics]
            for parts in zip(*running, strict=True):
                for states, (_, statistics, _) in zip(found, parts, strict=True):
                    states.append(_named(statistics["hidden"], "mean" if average else "last"))
        return [torch.stack(states) for states in found]

    def embeddings(self, topics: Sequence[Topic]) -> Array:
        """Return the sum of the base's embeddings over each topic's prompts, (D, d)."""
        import numpy as np

        tokenizer = load_tokenizer(self._base.root)
        model = self._skeleton.model
        module = model.get_input_embeddings()
        (name,) = [name for name, found in model.named_modules() if found is module]
        weights = Weights(self._skeleton, {BASE: self._base})
        try:
            table = weights.read(weights.stored[f"{name}.weight"][0]).double()
        finally:
            weights.close()
        rows = []
        for topic in topics:
            ids = [
                each
                for prompt in _begun(topic, tokenizer)
                for each in tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ]
            rows.append(table[ids].sum(0).numpy())
        return np.stack(rows)

    def text_embeddings(self, topics: Sequence[Topic], reading: Reading) -> Array:
        """Return the mean of each topic's texts as the base sees them; see `Measure`."""
        import numpy as np

        prepared = self._prepared(topics, reading)
        self._host.accept(prepared, "running texts for the gates")
        weights = Weights(prepared.skeleton, {BASE: self._base})
        total, count = np.zeros((len(topics), prepared.skeleton.width)), np.zeros(len(topics))
        try:
            stream = Stream(prepared.skeleton, weights)
            hidden = stream.embed(prepared.batches)
            for _ in stream.layers(prepared.batches, hidden):
                pass
            weights.load(None)
            for row, vector in text_vectors(stream, prepared.batches, hidden):
                domain = prepared.samples.samples[row].domain
                total[domain] += vector
                count[domain] += 1
        finally:
            weights.close()
        return total / count[:, None]

    def change(self, expert: int, layer: int) -> Array:
        """Return what an expert's gate and up projections add to the base's, (2 width, d)."""
        import numpy as np

        place, found = self._view.place(expert), []
        with ExitStack() as stack:
            weights, before = (
                Weights(self._skeleton, self._view.models, where)
                for where in (place, self._view.place(None))
            )
            stack.callback(weights.close)
            stack.callback(before.close)
            for part in ("gate", "up"):
                name = self._view.dense_name(layer, part)
                found.append((weights.read(name).double() - before.read(name).double()).numpy())
        return np.concatenate(found)

    @cached_property
    def _skeleton(self) -> Skeleton:
        return build(self._base.root)

    def _together(
        self, ways: Sequence[tuple[Prepared, int | None]], sample: int
    ) -> Iterator[tuple[int, LayerSums]]:
        """Run several passes side by side, and add up what each finds of a layer."""
        total = sum(one.samples.tokens for one, _ in ways)
        with ExitStack() as stack:
            running = [
                self._pass(stack, one, expert, "router", _sampler(one, sample, total))
                for one, expert in ways
            ]
            for parts in zip(*running, strict=True):
                found = [statistics for _, statistics, _ in parts]
                if found[0]["router"]:
                    yield parts[0][0], _added(found)

    def _weights(self, stack: ExitStack, prepared: Prepared, expert: int | None) -> Weights:
        found = Weights(prepared.skeleton, self._view.models, self._view.place(expert))
        stack.callback(found.close)
        return found

    def _pass(
        self,
        stack: ExitStack,
        prepared: Prepared,
        expert: int | None,
        kind: str,
        more: Sequence[Collector] = (),
    ) -> Pass:
        return measure(prepared, self._weights(stack, prepared, expert), [kind], more=more)

    def _relabelled(
        self, prepared: Prepared, topics: Sequence[Topic], settings: Settings
    ) -> Prepared:
        """Return texts as those of the expert that they perplex least.

        A text that was given for several experts is there once.
        """
        best: dict[int, tuple[float, int]] = {}
        for index, topic in enumerate(topics):
            self._host.say(f"running texts through expert {topic.expert + 1} of {len(topics)}")
            fresh = _with(prepared, prepared.samples, settings)
            with ExitStack() as stack:
                weights = self._weights(stack, fresh, topic.expert)
                stream = Stream(fresh.skeleton, weights)
                hidden = stream.embed(fresh.batches)
                for _ in stream.layers(fresh.batches, hidden):
                    pass
                weights.load(None)
                for loss in sample_losses(stream, fresh.batches, hidden):
                    own = loss.nats / max(loss.tokens, 1)
                    best[loss.row] = min(best.get(loss.row, (own, index)), (own, index))
        samples = tuple(
            replace(sample, domain=best[row][1])
            for row, sample in enumerate(prepared.samples.samples)
        )
        for index, topic in enumerate(topics):
            if not any(sample.domain == index for sample in samples):
                raise DataError(
                    f"expert `{topic.name}` predicts no text best",
                    "moe.gate",
                    "write `labels: expert`, or give texts that it is better at than the others",
                )
        names = tuple(topic.name for topic in topics)
        found = replace(prepared.samples, samples=samples, domains=names)
        return _with(prepared, found, settings)


def _once(texts: Sequence[Text]) -> list[Text]:
    """Return texts without those that are there already."""
    found: dict[tuple[str, str], Text] = {}
    for text in texts:
        found.setdefault((text.text, json.dumps([dict(turn) for turn in text.messages])), text)
    return list(found.values())


def _texts(topics: Sequence[Topic]) -> list[Text]:
    """Return the texts of all topics; the domain of a text is the name of its topic."""
    found: list[Text] = []
    for topic in topics:
        found += prompts(topic.name, topic.prompts)
        if topic.file is not None:
            found += [replace(text, domain=topic.name) for text in read_texts([topic.file])]
    return found


def _begun(topic: Topic, tokenizer: Any) -> list[str]:
    return [(tokenizer.bos_token or "") + prompt for prompt in topic.prompts]


def _with(prepared: Prepared, samples: Samples, settings: Settings) -> Prepared:
    """Return other samples with a fresh model, whose forward pass nobody else has entered."""
    fresh = build(prepared.folder, device=settings.device, dtype=settings.dtype)
    arranged = tuple(batches(samples, size=settings.batch))
    return replace(prepared, skeleton=fresh, samples=samples, batches=arranged)


def _named(statistics: Mapping[str, Tensor], key: str) -> Tensor:
    return next(value for name, value in statistics.items() if name.endswith(f".{key}"))


def _sampler(prepared: Prepared, sample: int, total: int) -> list[Collector]:
    """Return what keeps a pass's part of a sample of the inputs of all passes."""
    if not sample:
        return []
    tokens = prepared.samples.tokens
    return [InputCollector(tokens, max(1, sample * tokens // total))]


def _added(passes: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> LayerSums:
    """Return the sums of all passes together; each knows all topics."""
    import numpy as np

    sums = [statistics["router"] for statistics in passes]
    parts = [
        sum(_named(each, key).double() for each in sums[1:]) + _named(sums[0], key)
        for key in ("gram", "sum", "unit", "count")
    ]
    kept = [each["inputs"]["inputs"].double().numpy() for each in passes if "inputs" in each]
    sample = np.concatenate(kept) if kept else None
    gram, total, unit, count = (part.double().numpy() for part in parts)
    return LayerSums(gram, total, unit, count, sample)


def _facts(base: Model, prepared: Prepared, reading: Reading) -> dict[str, Any]:
    """Return what the manifest says of the pass."""
    import transformers

    return {
        "base_sha256": model_digest(base),
        "texts_sha256": prepared.samples.digest,
        "tokens": prepared.samples.tokens,
        "samples": len(prepared.samples.samples),
        "through": reading.through,
        "labels": reading.labels,
        "transformers": transformers.__version__,
    }

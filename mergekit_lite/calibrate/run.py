"""The calibration: texts through a model, layer by layer, into a folder of statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mergekit_lite
from mergekit_lite.calibrate.backward import require_head, run_back
from mergekit_lite.calibrate.collect import KINDS, Collector, collectors
from mergekit_lite.calibrate.estimate import Estimate, estimate, require_memory
from mergekit_lite.calibrate.skeleton import Place, Skeleton, build, require_transformers
from mergekit_lite.calibrate.slopes import SLOPES
from mergekit_lite.calibrate.store import Store, check_free
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.texts import Text
from mergekit_lite.calibrate.tokens import Batch, Samples, batches, load_tokenizer, tokenise
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import RecipeError, nearest
from mergekit_lite.plan.digests import DigestCache, file_sha256, model_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.sources import Model

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """How texts are run.

    Attributes:
        length: most tokens of a sample.
        max_tokens: most tokens of a domain.
        batch: most entries of a batch, padding counted.
        device: of torch.
        dtype: `float32` or `bfloat16`.
    """

    length: int = 512
    max_tokens: int = 16384
    batch: int = 2048
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Prepared:
    """A model without weights and the texts that are to go through it.

    Attributes:
        skeleton: the model.
        samples: its texts as token ids.
        batches: the same side by side.
        estimate: what it takes.
        folder: of the model.
    """

    skeleton: Skeleton
    samples: Samples
    batches: tuple[Batch, ...]
    estimate: Estimate
    folder: Path


def prepare(
    model: Model, texts: Sequence[Text], kinds: Sequence[str], settings: Settings
) -> Prepared:
    """Tokenise texts for a model and say what running them will take; reads no weight.

    Raises:
        RecipeError: a kind is not known, or the model's architecture is not.
        SourceError: transformers is not installed.
        DataError: there is no tokenizer, it is not the model's, or there is no text.
    """
    require_transformers("calibrate")
    _require_known(kinds)
    require_checkpoint(model)
    skeleton = build(model.root, device=settings.device, dtype=settings.dtype)
    require_head(skeleton, kinds)
    samples = tokenise(
        texts,
        load_tokenizer(model.root),
        length=settings.length,
        max_tokens=settings.max_tokens,
        vocabulary=skeleton.vocabulary,
    )
    arranged = batches(samples, size=settings.batch)
    return Prepared(
        skeleton,
        samples,
        tuple(arranged),
        estimate(skeleton, samples, arranged, kinds),
        model.root,
    )


def _require_known(kinds: Sequence[str]) -> None:
    known = [*KINDS, *SLOPES]
    if unknown := [kind for kind in kinds if kind not in known]:
        raise RecipeError(
            f"no statistic is called `{unknown[0]}`",
            "--collect",
            f"{nearest(unknown[0], known)} there are {', '.join(known)}".strip(),
        )


def measure(
    prepared: Prepared,
    weights: Weights,
    kinds: Sequence[str],
    *,
    hidden: list[Tensor] | None = None,
    first: int = 0,
    more: Sequence[Collector] = (),
    entered: Callable[[list[Tensor]], object] = lambda states: None,
) -> Iterator[tuple[int, Mapping[str, Mapping[str, Tensor]], list[Tensor]]]:
    """Run the texts and yield, layer by layer, the statistics of each kind and the hidden states.

    Args:
        prepared: the model and its texts.
        weights: of that model.
        kinds: what to collect.
        hidden: that enter layer `first`; None begins with the texts.
        first: layer to begin with.
        more: collectors of what `calibrate` does not write.
        entered: called with the hidden states that enter the first layer.
    """
    stream = Stream(prepared.skeleton, weights)
    found: list[Collector] = [*collectors(kinds, prepared.samples, weights), *more]

    def watch(place: Place) -> None:
        for each in found:
            each.watch(place)

    def before(batch: Batch, entering: Tensor) -> None:
        for each in found:
            each.before(batch, entering)

    states = stream.embed(prepared.batches) if hidden is None else hidden
    if hidden is None:
        entered(states)
    else:
        weights.load(None)
        weights.drop_vocabulary()
    for place in stream.layers(prepared.batches, states, first=first, watch=watch, before=before):
        yield place.index, {each.kind: each.take() for each in found}, states


def calibrate(
    model: Model,
    texts: Sequence[Text],
    out: Path,
    *,
    kinds: Sequence[str] = ("gram",),
    settings: Settings | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    tell: Tell = lambda text: None,
    files: Sequence[Path] = (),
) -> dict[str, Any]:
    """Measure a model on texts and write a folder of statistics; return its record.

    The folder appears complete or not at all. A measurement that was interrupted goes on after the
    last layer that it finished. The same inputs, settings and versions give the same bytes.

    Args:
        model: a checkpoint.
        texts: what to run.
        out: folder to make.
        kinds: what to collect: `gram`, `router`, `hidden`, `rates`, `outputs`, `merging`,
            `fisher`, `gradient`.
        settings: how texts are run.
        max_memory: most bytes that it may take.
        overwrite: replace a folder of statistics.
        tell: called with sentences on what it takes and how far it is.
        files: that the texts are from; their digests are in the record.

    Raises:
        RecipeError, SourceError, DataError: see `prepare`.
        ResourceError: it would take more memory than is allowed.
    """
    settings = settings or Settings()
    check_free(out, overwrite)
    prepared = prepare(model, texts, kinds, settings)
    tell(sentence(prepared))
    require_memory(prepared.estimate, max_memory)
    record = provenance(model, prepared, kinds, settings)
    if files:
        record["files"] = sorted({file_sha256(file) for file in files})
    store = Store(out, record, overwrite=overwrite)
    if store.done:
        tell(f"{store.done} steps of an earlier run, of a layer each, are taken up")
    layers = len(prepared.skeleton.layers)
    back = [kind for kind in SLOPES if kind in kinds]
    if store.done < layers:
        _forward(prepared, model, kinds, store, tell, whole=bool(back))
    for number, kind in enumerate(back):
        first = layers + number * (layers + 2)
        if store.done < first + layers + 2:
            run_back(prepared, model, kind, store, first, tell)
    store.finish()
    return record


def _forward(
    prepared: Prepared,
    model: Model,
    kinds: Sequence[str],
    store: Store,
    tell: Tell,
    *,
    whole: bool,
) -> None:
    """Run the texts through the layers that are not done; `whole` keeps all hidden states."""
    weights = Weights(prepared.skeleton, {"model": model})
    layers = len(prepared.skeleton.layers)

    def entered(states: list[Tensor]) -> None:
        if whole:
            store.keep_states(0, "hidden-0", states)

    try:
        hidden = store.kept() if store.done else None
        for layer, found, states in measure(
            prepared, weights, kinds, hidden=hidden, first=store.done, entered=entered
        ):
            for kind, tensors in found.items():
                store.put(layer, kind, tensors)
            store.keep(layer, states, earlier=whole)
            tell(f"layer {layer + 1} of {layers}")
    finally:
        weights.close()


def sentence(prepared: Prepared) -> str:
    """Return what will be run and what memory it takes, in one sentence."""
    samples, taken = prepared.samples, prepared.estimate
    left = f"; {samples.skipped} texts are left out" if samples.skipped else ""
    disk = f", and {taken.disk / 1e6:,.0f} MB of disk" if taken.disk else ""
    return (
        f"{samples.tokens:,} tokens of {len(samples.samples):,} samples in"
        f" {len(samples.domains)} domains ({', '.join(samples.domains)}){left}; about"
        f" {taken.memory / 1e6:,.0f} MB of memory, {taken.hidden / 1e6:,.0f} MB of it for hidden"
        f" states{disk}"
    )


def provenance(
    model: Model, prepared: Prepared, kinds: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Return where statistics come from: what was run on what, by which versions."""
    import torch
    import transformers

    samples = prepared.samples
    return {
        "version": 1,
        "mergekit_lite": mergekit_lite.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": model.reference,
        "model_sha256": model_digest(model),
        "texts_sha256": samples.digest,
        "domains": list(samples.domains),
        "samples": len(samples.samples),
        "tokens": samples.tokens,
        "layers": len(prepared.skeleton.layers),
        "kinds": [kind for kind in (*KINDS, *SLOPES) if kind in kinds],
        "length": settings.length,
        "batch": settings.batch,
        "device": torch.device(settings.device).type,
        "dtype": settings.dtype,
    }


def model_digest(model: Model) -> str:
    """Return one sha256 for all weight files of a model."""
    cache = DigestCache()
    digest = hashlib.sha256()
    for file in sorted(model.header.files):
        digest.update(f"{file} {model_sha256(model, file, cache)}\n".encode())
    cache.save()
    return digest.hexdigest()


def require_checkpoint(model: Model) -> None:
    """Check that a model can be run as it is.

    Raises:
        RecipeError: it is an adapter, has no config, or weights that cannot be read.
    """
    hint = "give the folder that holds config.json, the tokenizer and the *.safetensors files"
    if model.kind == "adapter":
        raise RecipeError("an adapter alone cannot be run", model.reference, "merge it first")
    if not model.root.is_dir() or model.config is None:
        raise RecipeError("a model without config.json cannot be run", model.reference, hint)
    if model.unreadable:
        raise RecipeError(list(model.unreadable))

"""Folders that PEFT's Arrow takes: adapters of one rank that change the same modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.adapters.files import plan_of
from mergekit_lite.adapters.lock import Making
from mergekit_lite.adapters.place import making
from mergekit_lite.adapters.together import Member, base_name, members_of
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.errors import RecipeError
from mergekit_lite.folders import write_json
from mergekit_lite.plan.adapter_config import PREFIX, WEIGHT_FILE, lora_config

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
_USE = """\
---
library_name: peft
---

# {title}

{count} adapters of `{base}` that PEFT routes by Arrow (arXiv:2405.11157): they have one rank and
change the same modules.{general}

```python
from peft import ArrowConfig, create_arrow_model
from transformers import AutoModelForCausalLM

folder = "{title}"
base = AutoModelForCausalLM.from_pretrained("{base}")
model = create_arrow_model(
    base,
    [f"{{folder}}/{{name}}" for name in ({names},)],
    ArrowConfig(top_k={top_k}, router_temperature={temperature}),
)
```
"""


@dataclass(frozen=True)
class Common:
    """What all adapters of a folder have in common.

    Attributes:
        rank: of every module.
        modules: name -> outputs and inputs.
    """

    rank: int
    modules: Mapping[str, tuple[int, int]]


def arrow_folder(
    base: Model,
    adapters: Sequence[Model],
    out: Path,
    *,
    general: Sequence[Model] = (),
    top_k: int = 3,
    temperature: float = 1.0,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> list[str]:
    """Write adapters as PEFT's `create_arrow_model` wants them.

    Narrower ones are filled up with zeros to the largest rank, and modules that one leaves alone
    get pairs of zeros; neither changes what an adapter does. With `general`, the mean of the
    general adapters' factors is taken from those of each: from A and from B, as GenKnowSub's
    authors do, not from their product.

    Args:
        base: the model that the adapters change.
        adapters: of tasks.
        out: folder to make.
        general: adapters of general texts.
        top_k: how many adapters a token passes; what the card says to load it with.
        temperature: of the softmax over them; the same.
        overwrite: replace a folder that is there.
        emit: told what the user should know.

    Returns:
        The names of the adapters' folders.

    Raises:
        RecipeError: adapters do not go together, or `out` does not fit.
    """
    everyone = members_of(base, [*adapters, *general], linear=True)
    members, others = everyone[: len(adapters)], everyone[len(adapters) :]
    if not 1 <= top_k <= len(members):
        raise RecipeError(f"a token cannot pass {top_k} of {len(members)} adapters")
    common = _common(base, everyone)
    parameters = {"top_k": top_k, "temperature": temperature, "general": len(others)}
    models = {"base": base, **{f"adapter {m.name}": m.model for m in everyone}}
    made = Making("adapter arrow", parameters, plan_of(models), models)
    readers = Readers({member.name: member.model for member in everyone})
    try:
        with making(made, out, overwrite=overwrite, emit=emit) as folder:
            for member in members:
                _write(member, others, common, readers, base, folder / member.name)
            text = _card(base, members, len(others), out.name, parameters)
            (folder / "README.md").write_text(text, encoding="utf-8")
    finally:
        readers.close()
    return [member.name for member in members]


def _common(base: Model, members: Sequence[Member]) -> Common:
    # PEFT adds the router to every module of these names, and finds all adapters there.
    ends = {module.rpartition(".")[2] for member in members for module in member.pairs}
    modules = {
        module: (info.shape[0], info.shape[1])
        for name, info in base.header.tensors.items()
        if len(info.shape) == 2
        and (module := name.removesuffix(".weight")) != name
        and module.rpartition(".")[2] in ends
    }
    ranks = [
        member.model.header.tensors[pair.a].shape[0]
        for member in members
        for pair in member.pairs.values()
    ]
    return Common(max(ranks), modules)


def _pair(member: Member, module: str, common: Common, readers: Readers) -> Pair:
    """Return the factors of a module, filled up with zeros to the common rank."""
    outputs, inputs = common.modules[module]
    a, b = np.zeros((common.rank, inputs), np.float32), np.zeros((outputs, common.rank), np.float32)
    own = member.pairs.get(module)
    if own is not None:
        stored = readers.tensor(member.name, own.a)
        a[: len(stored)] = stored
        b[:, : len(stored)] = readers.tensor(member.name, own.b)
    return a, b


def _write(
    member: Member,
    general: Sequence[Member],
    common: Common,
    readers: Readers,
    base: Model,
    folder: Path,
) -> None:
    folder.mkdir()
    with Spool(folder) as spool:
        for module in common.modules:
            pair = _pair(member, module, common, readers)
            for part, value, less in zip(
                "AB", pair, _mean(general, module, common, readers), strict=True
            ):
                stored = np.ascontiguousarray(value - less if general else value, "<f4")
                name = f"{PREFIX}{module}.lora_{part}.weight"
                spool.add(name, "F32", stored.shape, stored.view(np.uint8).reshape(-1))
        spool.finish(folder / WEIGHT_FILE, {"format": "pt"})
    write_json(folder / "adapter_config.json", _config(member, common, base))


def _mean(general: Sequence[Member], module: str, common: Common, readers: Readers) -> Pair:
    """Return the mean of general adapters' factors, added up in their order."""
    pairs = [_pair(member, module, common, readers) for member in general]
    count = np.float32(max(len(pairs), 1))
    if not pairs:
        zero = np.zeros((), np.float32)
        return zero, zero
    a, b = pairs[0]
    for left, right in pairs[1:]:
        a, b = a + left, b + right
    return a / count, b / count


def _config(member: Member, common: Common, base: Model) -> dict[str, Any]:
    """Return what PEFT needs to know; scales are kept, as the rank is another perhaps."""
    scales = {module: own.scale for module, own in member.pairs.items()}
    usual = max(scales.values(), key=list(scales.values()).count)
    told = lora_config(
        dict.fromkeys(common.modules, common.rank),
        base.header.tensors,
        rank=common.rank,
        patterns={},
        saved=(),
        base_model=base_name(base),
        task_type=(member.model.adapter.config.get("task_type") if member.model.adapter else None),
    )
    others = {m: scale * common.rank for m, scale in scales.items() if scale != usual}
    return {**told, "lora_alpha": usual * common.rank, "alpha_pattern": others}


def _card(
    base: Model,
    members: Sequence[Member],
    general: int,
    title: str,
    parameters: Mapping[str, Any],
) -> str:
    said = f" The mean of {general} general adapters has been taken from each (GenKnowSub)."
    return _USE.format(
        title=title,
        count=len(members),
        base=base_name(base),
        general=said if general else "",
        names=", ".join(f'"{member.name}"' for member in members),
        top_k=parameters["top_k"],
        temperature=parameters["temperature"],
    )

"""A folder that PEFT loads as X-LoRA: adapters, and a classifier that weighs them by token."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_lite.adapters.files import plan_of
from mergekit_lite.adapters.lock import Making
from mergekit_lite.adapters.place import making
from mergekit_lite.adapters.together import Member, base_name, members_of
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.engine.events import Event
from mergekit_lite.errors import RecipeError
from mergekit_lite.folders import write_json
from mergekit_lite.plan.adapter_config import WEIGHT_FILE
from mergekit_lite.plan.configs import value

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

_CLASSIFIER = "base_model.internal_xlora_classifier.layers.0"
_USE = """\
---
library_name: peft
---

# {title}

{count} adapters of `{base}` under an X-LoRA classifier (arXiv:2402.07148), which is all zeros:
until it is trained, every adapter weighs 1/{count} everywhere, and the result is the linear average
of their changes.

```python
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

folder = "{title}"
base = AutoModelForCausalLM.from_pretrained("{base}")
base.config.use_cache = False  # X-LoRA looks at each text twice
config = PeftConfig.from_pretrained(folder)
config.adapters = {{key: f"{{folder}}/{{name}}" for key, name in config.adapters.items()}}
model = PeftModel.from_pretrained(base, folder, config=config)
```

{table}
"""


def xlora_folder(
    base: Model,
    adapters: Sequence[Model],
    out: Path,
    *,
    layerwise: bool = False,
    top_k: int | None = None,
    temperature: float = 1.0,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> list[str]:
    """Write adapters and an untrained X-LoRA classifier as one folder.

    Args:
        base: the model that the adapters change.
        adapters: copied byte for byte, each into a folder of its own.
        out: folder to make.
        layerwise: weights of its own for each module, not the same for all.
        top_k: how many adapters are active; None for all.
        temperature: of the classifier's softmax.
        overwrite: replace a folder that is there.
        emit: told what the user should know.

    Returns:
        The names of the adapters' folders.

    Raises:
        RecipeError: adapters do not go together, or `out` does not fit.
    """
    members = members_of(base, adapters, linear=False)
    hidden = value(base.config, "hidden_size")
    if not isinstance(hidden, int):
        raise RecipeError(f"the config of `{base.reference}` does not say `hidden_size`")
    if top_k is not None and not 1 <= top_k <= len(members):
        raise RecipeError(f"{top_k} of {len(members)} adapters cannot be active")
    modules = {module for member in members for module in member.pairs}
    classes = len(members) * (len(modules) if layerwise else 1)
    parameters = {"layerwise": layerwise, "top_k": top_k, "temperature": temperature}
    models = {"base": base, **{f"adapter {m.name}": m.model for m in members}}
    made = Making("adapter xlora", parameters, plan_of(models), models)
    with making(made, out, overwrite=overwrite, emit=emit) as folder:
        for member in members:
            _copy(member, folder / member.name)
        with Spool(folder) as spool:
            for part, shape in (("weight", (classes, hidden)), ("bias", (classes,))):
                zeros = np.zeros(4 * int(np.prod(shape)), np.uint8)
                spool.add(f"{_CLASSIFIER}.{part}", "F32", shape, zeros)
            spool.finish(folder / WEIGHT_FILE, {"format": "pt"})
        write_json(folder / "adapter_config.json", _config(base, members, hidden, parameters))
        (folder / "README.md").write_text(_card(base, members, out.name), encoding="utf-8")
    return [member.name for member in members]


def _copy(member: Member, folder: Path) -> None:
    folder.mkdir()
    for file in (WEIGHT_FILE, "adapter_config.json"):
        shutil.copyfile(member.model.root / file, folder / file)


def _config(
    base: Model, members: Sequence[Member], hidden: int, parameters: dict[str, Any]
) -> dict[str, Any]:
    return {
        "peft_type": "XLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name(base),
        "inference_mode": True,
        # PEFT calls the adapters by number, whatever their names.
        "adapters": {str(number): member.name for number, member in enumerate(members)},
        "hidden_size": hidden,
        "enable_softmax": True,
        "enable_softmax_topk": False,
        "layerwise_scalings": parameters["layerwise"],
        "softmax_temperature": parameters["temperature"],
        "top_k_lora": parameters["top_k"],
        "xlora_depth": 1,
        "xlora_size": 2048,
        "xlora_dropout_p": 0.2,
        "use_trainable_adapters": False,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
    }


def _card(base: Model, members: Sequence[Member], title: str) -> str:
    rows = ["| adapter | folder |", "|---|---|"]
    rows += [f"| {number} | `{member.name}` |" for number, member in enumerate(members)]
    return _USE.format(title=title, count=len(members), base=base_name(base), table="\n".join(rows))

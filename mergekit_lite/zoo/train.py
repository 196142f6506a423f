"""Train an expert of the base: a LoRA adapter, or every weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.zoo.catalog import Expert, Training
from mergekit_lite.zoo.corpus import documents

if TYPE_CHECKING:
    import torch

RANK = 8
ALPHA = 16
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def windows(tokens: list[int], training: Training) -> Iterator[torch.Tensor]:
    """Yield one batch of token windows per step, int64 of shape (batch, window).

    Windows do not overlap and are drawn in a seeded order; the order starts anew when all of them
    have been used.
    """
    import torch

    count = len(tokens) // training.window
    rows = torch.tensor(tokens[: count * training.window]).view(count, training.window)
    generator = torch.Generator().manual_seed(training.seed)
    order: list[int] = []
    for _ in range(training.steps):
        while len(order) < training.batch:
            order += torch.randperm(count, generator=generator).tolist()
        yield rows[order[: training.batch]]
        del order[: training.batch]


def rate_at(step: int, training: Training) -> float:
    """Return the learning rate of a step: warmed up over a tenth of the steps, then falling."""
    warm = max(1, training.steps // 10)
    if step < warm:
        return training.rate * (step + 1) / warm
    return training.rate * (training.steps - step) / (training.steps - warm + 1)


def fit(
    model: Any, tokens: list[int], training: Training, report: Callable[[int, float], None]
) -> list[float]:
    """Train the parameters of `model` that require gradients; return the loss of every step."""
    import torch

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=training.rate, weight_decay=0.0)
    model.train()
    losses = []
    for step, batch in enumerate(windows(tokens, training)):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, training)
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        report(step + 1, losses[-1])
    return losses


def load_base(folder: Path, seed: int) -> tuple[Any, Any]:
    """Load the base in fp32 and its tokenizer, with torch seeded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def training_tokens(expert: Expert, tokenizer: Any, data: Path) -> list[int]:
    text = "\n".join(documents(expert, data, "train"))
    tokens: list[int] = tokenizer(text, verbose=False).input_ids
    return tokens


def train_adapter(
    expert: Expert, base: Path, data: Path, out: Path, report: Callable[[int, float], None]
) -> dict[str, Any]:
    """Train the expert's LoRA adapter, save it through PEFT in bfloat16 and return its record.

    Args:
        base: folder of the base.
        data: root under which the expert's Debian package lies.
        out: folder that the adapter is written to.
        report: called with (step, loss) after every step.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_base(base, expert.adapter.seed)
    tokens = training_tokens(expert, tokenizer, data)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(LINEARS),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    model.peft_config["default"].base_model_name_or_path = "zoo:smol"
    losses = fit(model, tokens, expert.adapter, report)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "adapter_model.safetensors").chmod(0o644)
    # PEFT's card would name a folder of this machine; the record below says how the adapter came.
    (out / "README.md").unlink(missing_ok=True)
    return write_record(expert, expert.adapter, losses, tokens, out)


def write_record(
    expert: Expert, training: Training, losses: list[float], tokens: list[int], out: Path
) -> dict[str, Any]:
    """Write `TRAINING.json`: what the expert was trained on, how, and what it lost."""
    import torch

    edge = max(1, len(losses) // 10)
    record = {
        "command": f"mergekit-lite zoo train {expert.name}",
        "base": "zoo:smol (SmolLM2-135M-Instruct, dequantised from 4 bits)",
        "data": {
            "package": expert.package,
            "licence": expert.licence,
            "split": "train",
            "tokens_in_split": len(tokens),
        },
        "settings": asdict(training),
        "loss_first_tenth": round(sum(losses[:edge]) / edge, 4),
        "loss_last_tenth": round(sum(losses[-edge:]) / edge, 4),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    (out / "TRAINING.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def train_full(
    expert: Expert, base: Path, data: Path, out: Path, report: Callable[[int, float], None]
) -> dict[str, Any]:
    """Train every weight of the base on the expert's text and write a checkpoint in bfloat16.

    Arguments are those of `train_adapter`; `out` becomes a folder that transformers loads.
    """
    import torch
    from safetensors.torch import save_file

    model, tokenizer = load_base(base, expert.full.seed)
    tokens = training_tokens(expert, tokenizer, data)
    losses = fit(model, tokens, expert.full, report)
    out.mkdir(parents=True, exist_ok=True)
    state = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in model.named_parameters()
    }
    save_file(state, out / "model.safetensors", {"format": "pt"})
    for file in base.iterdir():
        if file.suffix != ".safetensors" and file.name != "README.md":
            shutil.copyfile(file, out / file.name)
    return write_record(expert, expert.full, losses, tokens, out)

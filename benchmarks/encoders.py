"""Merge encoders with frozen linear heads, and tell how often each merge is right.

    python benchmarks/encoders.py --data FOLDER --json encoders.json

A small vision transformer learns a little of three tasks of pictures (`pictures.py` tells which
packages to unpack into FOLDER). For each task a linear head is fitted on its features and frozen,
and the encoder alone is tuned: an expert. Merges of the experts are scored on every task with the
task's head. Scales are chosen on validation pictures, tests seen once by each row. The models are
trained in some minutes, always with the same seeds. Needs the extra `calibrate`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from in_memory import Weights, best_scale, record, scores_of
from intervals import Windows, difference, mean
from pictures import SEED, Part, Task, tasks
from torch import Tensor, nn
from zoo_methods import METHODS

import mergekit_lite

Heads = Mapping[str, nn.Linear]
CHOSEN = (
    "linear", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "magmax", "consensus",
    "tatr", "pcb", "model_stock", "karcher", "tsv_merge", "iso_c", "iso_cts", "cart", "ace",
)  # fmt: skip
BATCH, BASE_STEPS, EXPERT_STEPS, RATE = 128, 300, 200, 1e-4
BASE, OWN, CONTROL = "base", "experts, own task", "experts x1.5, own task"


def encoder() -> Any:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(SEED)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(config, add_pooling_layer=False)


def features(model: Any, pictures: Tensor) -> Tensor:
    """Return what the encoder says of each picture: (pictures, width)."""
    found: Tensor = model(pixel_values=pictures).last_hidden_state[:, 0]
    return found


def all_features(model: Any, pictures: Tensor) -> Tensor:
    """Return the same of any number of pictures, without what training needs."""
    starts = range(0, len(pictures), 500)
    with torch.no_grad():
        return torch.cat([features(model, pictures[start : start + 500]) for start in starts])


def tuned(model: Any, parts: Sequence[tuple[Part, nn.Linear]], steps: int, rate: float) -> None:
    """Train the encoder, and the heads that may learn, on all parts by turns."""
    heads = [weight for _, head in parts for weight in head.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW([*model.parameters(), *heads], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for step in range(steps):
        part, head = parts[step % len(parts)]
        taken = torch.randint(len(part.labels), (BATCH,), generator=generator)
        logits = head(features(model, part.pictures[taken]))
        loss = nn.functional.cross_entropy(logits, part.labels[taken])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    model.eval()


def head_of(model: Any, part: Part) -> nn.Linear:
    """Fit a linear head on an encoder's features, and freeze it."""
    seen = all_features(model, part.pictures)
    torch.manual_seed(SEED)
    head = nn.Linear(seen.shape[1], 10)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        found = nn.functional.cross_entropy(head(seen), part.labels)
        found = found + 1e-4 * head.weight.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach())

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return head.requires_grad_(False)


def wrong(model: Any, head: nn.Linear, part: Part) -> Windows:
    """Return for each picture whether it is taken for something else."""
    chosen = head(all_features(model, part.pictures)).argmax(-1)
    missed = (chosen != part.labels).double().tolist()
    return Windows(tuple(missed), (1,) * len(missed))


def loaded(folder: Path) -> Any:
    """Return a written encoder, ready to be asked."""
    from transformers import ViTModel, logging

    logging.disable_progress_bar()
    return ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()


def build(known: Mapping[str, Task], folder: Path) -> Heads:
    """Train base and experts that are not there yet, and return the frozen heads."""
    if not (folder / "base").exists():
        model = encoder()
        early = [(task.early, nn.Linear(64, 10)) for task in known.values()]
        tuned(model, early, BASE_STEPS, 1e-3)
        model.save_pretrained(folder / "base")
    heads = {name: head_of(loaded(folder / "base"), task.train) for name, task in known.items()}
    for name, task in known.items():
        if not (folder / name).exists():
            say(f"{name}: training")
            expert = loaded(folder / "base")
            tuned(expert, [(task.train, heads[name])], EXPERT_STEPS, RATE)
            expert.save_pretrained(folder / name)
    return heads


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """The encoders, and one in memory that merges are put into.

    Args:
        known: the tasks.
        folder: for checkpoints.
    """

    def __init__(self, known: Mapping[str, Task], folder: Path) -> None:
        self.tasks, self.folder = known, folder
        self.heads = build(known, folder)
        self.model = loaded(folder / "base")
        self.base = self.weights("base")

    def weights(self, name: str) -> Weights:
        """Return a checkpoint's weights by the names that they have in memory."""
        found: Weights = loaded(self.folder / name).state_dict()
        return found

    def put(self, merged: Weights, scale: float = 1.0) -> None:
        self.model.load_state_dict(
            {name: self.base[name] + scale * (merged[name] - self.base[name]) for name in merged}
        )

    def score(self, split: str) -> dict[str, Windows]:
        return {
            name: wrong(self.model, self.heads[name], getattr(task, split))
            for name, task in self.tasks.items()
        }

    def merge(self, steps: Sequence[Any]) -> Weights:
        recipe = {
            "schema_version": 1,
            "base": str(self.folder / "base"),
            "experts": {name: str(self.folder / name) for name in self.tasks},
            "steps": list(steps),
        }
        mergekit_lite.run(recipe, self.folder / "out", overwrite=True)
        return self.weights("out")


def references(bench: Bench) -> dict[str, Any]:
    """Score the base, the experts, and each on its own task, as it is and scaled by 1.5."""
    bench.put(bench.base)
    found = {BASE: record(bench.score("test"))}
    own: dict[float, dict[str, Windows]] = {1.0: {}, 1.5: {}}
    for name in bench.tasks:
        expert = bench.weights(name)
        for scale, taken in own.items():
            bench.put(expert, scale)
            scores = bench.score("test")
            taken[name] = scores[name]
            if scale == 1:
                found[f"expert {name}"] = record(scores)
    return found | {OWN: record(own[1.0]), CONTROL: record(own[1.5])}


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """Choose the scale on validation pictures and score on test pictures."""
    method = METHODS[name]
    merged = bench.merge(method.steps)

    def loss(scale: float) -> float:
        bench.put(merged, scale)
        return mean(bench.score("validation"))

    scale = best_scale(loss)[0] if method.is_scaled else None
    bench.put(merged, 1.0 if scale is None else scale)
    return record(bench.score("test")) | {"scale": scale}


def table(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return accuracies as Markdown; differences that are apart from 0 in bold."""
    known = {name: scores_of(row) for name, row in found.items()}
    lines = [
        f"| method | scale | {' | '.join(names)} | mean | less task_arithmetic [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, scores in sorted(known.items(), key=lambda item: -mean(item[1])):
        cells = [f"{1 - float(scores[task].bits_per_byte()):.1%}" for task in names]
        # Shares that are wrong, so that the sign is that of accuracies when turned round.
        apart = difference(known["task_arithmetic"], scores)
        shown = (
            "" if name == "task_arithmetic" else f"**{apart}**" if apart.is_apart else f"{apart}"
        )
        scale = found[name].get("scale")
        row = [name, "" if scale is None else f"{scale:g}", *cells, f"{1 - mean(scores):.1%}"]
        lines.append(f"| {' | '.join([*row, shown])} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="where packages were unpacked")
    parser.add_argument("--models", type=Path, help="keep, and take up, trained models here")
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(tasks(arguments.data), arguments.models or Path(scratch))
        say(f"trained in {time.process_time() - began:.0f} s of processor time")
        found = references(bench)
        for name in CHOSEN:
            say(name)
            found[name] = measure(bench, name)
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(table(found, list(bench.tasks)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

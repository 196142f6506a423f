"""`mergekit-lite zoo`: list, build, train and score the embedded models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli._output import note, print_json, table

if TYPE_CHECKING:
    from mergekit_lite.zoo.score import Score

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("/"),
    show_default=True,
    help="Root under which the Debian packages with the training text are installed or unpacked.",
)


@click.group("zoo")
def command() -> None:
    """Small real models and experts for first steps.

    The base is SmolLM2-135M-Instruct, dequantised from 4 bits; its experts ship as LoRA adapters.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List what the zoo holds and what is already on this machine."""
    from mergekit_lite.folders import cache_folder
    from mergekit_lite.zoo.catalog import BASE, EXPERTS

    cache = cache_folder("zoo")
    rows = [
        {
            "reference": f"zoo:{BASE}",
            "kind": "checkpoint",
            "about": "SmolLM2-135M-Instruct, dequantised from 4 bits",
            "here": (cache / BASE / "config.json").is_file(),
        }
    ]
    for expert in EXPERTS.values():
        full = cache / f"{BASE}-{expert.name}-full" / "config.json"
        made = {"kind": "checkpoint", "about": f"{expert.about}, every weight trained"}
        rows += [
            {
                "reference": expert.reference,
                "kind": "adapter",
                "about": expert.about,
                "here": (expert.folder / "adapter_config.json").is_file(),
            },
            {"reference": f"{expert.reference}-full", **made, "here": full.is_file()},
        ]
    if as_json:
        print_json(rows)
        return
    shown = [
        (row["reference"], row["kind"], "here" if row["here"] else "to build", row["about"])
        for row in rows
    ]
    click.echo(table(("name", "kind", "state", "about"), shown))


@command.command()
@click.option("--full", is_flag=True, help="Also train every weight of each expert (minutes each).")
@DATA
def build(full: bool, data: Path) -> None:
    """Make the base, and with --full the fully fine-tuned experts, in the cache."""
    from mergekit_lite.folders import cache_folder
    from mergekit_lite.sources.zoo import zoo_folder

    base = zoo_folder("zoo:smol")
    click.echo(base)
    if not full:
        return
    from mergekit_lite.zoo.build import build_full
    from mergekit_lite.zoo.catalog import EXPERTS

    for expert in EXPERTS.values():
        out = cache_folder("zoo") / f"{expert.reference.removeprefix('zoo:')}-full"
        click.echo(build_full(expert, base, data, out, _steps(f"{expert.reference}-full")))


@command.command()
@click.argument("name")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder for the adapter; by default `NAME` here.",
)
@DATA
def train(name: str, out: Path | None, data: Path) -> None:
    """Train the LoRA adapter of the expert NAME again, with its fixed seed.

    The text comes from Debian packages: postgresql-15 (german, french) and wordnet-base
    (dictionary), under --data.
    """
    from mergekit_lite.sources.zoo import zoo_folder
    from mergekit_lite.zoo.build import record_scores, require_training
    from mergekit_lite.zoo.catalog import expert_named
    from mergekit_lite.zoo.corpus import documents

    expert = expert_named(name)
    folder = out or Path(expert.name)
    documents(expert, data, "train")
    require_training(folder)
    from mergekit_lite.zoo.train import train_adapter

    train_adapter(expert, zoo_folder("zoo:smol"), data, folder, _steps(expert.reference))
    scores = record_scores(expert, folder)
    note(f"bits per byte: base {scores['base']:.3f}, expert {scores['expert']:.3f}")
    click.echo(folder)


@command.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--split", type=click.Choice(["test", "validation"]), default="test")
@click.option("--windows", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score(models: tuple[str, ...], split: str, windows: int, as_json: bool) -> None:
    """Print bits per byte of MODELS on each domain's held-out text; lower is better.

    MODELS are `zoo:NAME`, folders that transformers loads, or adapters of the zoo's base.
    """
    from mergekit_lite.zoo.build import require_training
    from mergekit_lite.zoo.score import folder_of, origin
    from mergekit_lite.zoo.score import score as score_all

    require_training()
    found = score_all(
        models,
        split=split,
        windows=windows,
        report=lambda model, domain: note(f"scoring {model} on {domain}"),
    )
    dequantised = {model: origin(folder_of(model)) for model in models}
    if as_json:
        rows = [asdict(row) | {"dequantised_from": dequantised[row.model]} for row in found]
        print_json({"split": split, "unit": "bits per byte", "scores": rows})
        return
    click.echo(score_table(found))
    click.echo(f"bits per byte on held-out {split} text, {windows} windows each; lower is better")
    if any(dequantised.values()):
        click.echo("zoo:smol, and so what is made from it, is dequantised from 4 bits")


def score_table(found: list[Score]) -> str:
    """Return one line a model and one column a domain; the best of each column has a star."""
    domains = list(dict.fromkeys(row.domain for row in found))
    models = list(dict.fromkeys(row.model for row in found))
    value = {(row.model, row.domain): row.bits_per_byte for row in found}
    best = {domain: min(value[model, domain] for model in models) for domain in domains}
    rows = []
    for model in models:
        mean = sum(value[model, domain] for domain in domains) / len(domains)
        cells = [
            f"{value[model, domain]:.3f}{'*' if value[model, domain] == best[domain] else ' '}"
            for domain in domains
        ]
        rows.append((model, *cells, f"{mean:.3f}"))
    return table(
        ("model", *(f"{name} " for name in domains), "mean"), rows, "l" + "r" * (len(domains) + 1)
    )


def _steps(name: str) -> Callable[[int, float], None]:
    """Return a callback that says every tenth step on stderr."""

    def report(step: int, loss: float) -> None:
        if step == 1 or step % 10 == 0:
            note(f"{name}: step {step}, loss {loss:.3f}")

    return report

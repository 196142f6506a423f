"""`mergekit-lite moe check-compat`: what loaders will do with a routed model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import print_json, table

if TYPE_CHECKING:
    from mergekit_lite.moe.compat import Report


@click.command("check-compat", short_help="Say what loaders will do with a routed model.")
@click.argument("model")
@click.option(
    "--require",
    type=click.Choice(["transformers", "vllm", "llama.cpp"]),
    multiple=True,
    help="Exit with 3 unless this loader computes what config and weights say.",
)
@parameters.as_json
@click.pass_context
def command(context: click.Context, model: str, require: tuple[str, ...], as_json: bool) -> None:
    """Say, from config and headers, what transformers, vLLM and llama.cpp will do with MODEL.

    \b
    Examples:
      mergekit-lite moe check-compat ./routed
      mergekit-lite moe check-compat ./routed --require vllm
    """
    from mergekit_lite.moe.compat import check_model
    from mergekit_lite.sources import resolve

    report = check_model(resolve(model, relative_to=Path.cwd()))
    if as_json:
        print_json(report.plain())
    else:
        click.echo(report_text(report))
    if any(report.verdict(loader) != "same" for loader in require):
        context.exit(3)


def report_text(report: Report) -> str:
    """Return a report for a person to read."""
    meant = "add up to 1" if report.normalised else "do not add up to 1"
    head = (
        f"{report.family}: {report.experts} experts, {report.per_token} for each token,"
        f" whose weights {meant}"
    )
    rows = [(f.loader, f.verdict, f.what) for f in report.findings]
    hints = [f"{f.loader}: {f.hint}" for f in report.findings if f.hint and f.verdict != "same"]
    text = f"{head}\n\n{table(('loader', 'verdict', 'what it does'), rows)}"
    return text + ("\n\n" + "\n".join(hints) if hints else "")

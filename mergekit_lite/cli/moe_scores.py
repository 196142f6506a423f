"""`mergekit-lite moe scores`: which experts matter for texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json, table


@click.command("scores", short_help="Say which experts of a routed model matter for texts.")
@click.argument("stats", type=click.Path(path_type=Path))
@click.option(
    "--by",
    type=click.Choice(["gate", "token"]),
    default="token",
    show_default=True,
    help="By the weights that experts are given, or by the tokens that choose them.",
)
@click.option(
    "--part",
    type=click.FloatRange(0, 1, min_open=True),
    help="Part of a layer's scores to reach; by default 0.1 of gates, 0.2 of tokens.",
)
@click.option("--of", metavar="DOMAIN", help="Compare this domain's choices ...")
@click.option("--against", metavar="DOMAIN", help="... with those of this one.")
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Experts to list."
)
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@parameters.as_json
def command(
    stats: Path,
    by: str,
    part: float | None,
    of: str | None,
    against: str | None,
    top: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say which experts matter, from STATS, a folder of `calibrate --collect rates`.

    Without --of: for each layer the fewest experts whose scores reach --part, as ESFT trains them;
    --out writes its expert_cfg.json. With --of and --against: the experts that one domain's tokens
    choose more often than the other's, over all layers.

    \b
    Examples:
      mergekit-lite calibrate ./routed --data math.jsonl --collect rates -o stats
      mergekit-lite moe scores stats --by gate -o expert_cfg.json
      mergekit-lite moe scores stats --of math --against code --top 20
    """
    from mergekit_lite.calibrate.expert_scores import differences, esft_config, expert_scores

    if (of is None) != (against is None):
        raise click.UsageError("--of and --against are given together")
    found: Any
    if of is not None and against is not None:
        listed = differences(stats, of, against)[:top]
        found = [{"difference": d, "layer": layer, "expert": e} for d, layer, e in listed]
        text = table(
            ("layer", "expert", f"{of} - {against}"),
            [(layer, expert, f"{100 * d:+.1f} %") for d, layer, expert in listed],
            "rrr",
        )
    else:
        found = esft_config(stats, by, part)  # type: ignore[arg-type]
        scores = expert_scores(stats, by)  # type: ignore[arg-type]
        text = table(
            ("layer", "experts", "their part"),
            [
                (
                    layer,
                    " ".join(map(str, chosen)),
                    f"{100 * scores[int(layer)][chosen].sum():.1f} %",
                )
                for layer, chosen in found["experts"].items()
            ],
            "rlr",
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        note(f"wrote {out}")
    if as_json:
        print_json(found)
    else:
        click.echo(text)

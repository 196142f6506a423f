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
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    help="Model that was measured: freeze_mask.json comes beside --out.",
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
    model: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say which experts matter, from STATS, a folder of `calibrate --collect rates`.

    Without --of: for each layer the fewest experts whose scores reach --part, as ESFT trains them;
    --out writes its expert_cfg.json, and with --model a freeze_mask.json, which names every tensor
    that stays as it is, for any other training. With --of and --against: the experts that one
    domain's tokens choose more often than the other's, over all layers.

    \b
    Examples:
      mergekit-lite calibrate ./routed --data math.jsonl --collect rates -o stats
      mergekit-lite moe scores stats --by gate --model ./routed -o expert_cfg.json
      mergekit-lite moe scores stats --of math --against code --top 20
    """
    from mergekit_lite.calibrate.expert_scores import differences, esft_config, expert_scores

    if (of is None) != (against is None):
        raise click.UsageError("--of and --against are given together")
    if model is not None and (out is None or of is not None):
        raise click.UsageError("--model goes with --out, and not with --of")
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
        mask = _mask(model, found, stats) if model is not None else None
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        note(f"wrote {out}")
        if mask is not None:
            _write_mask(mask, out.with_name("freeze_mask.json"))
    if as_json:
        print_json(found)
    else:
        click.echo(text)


def _mask(folder: Path, found: dict[str, Any], stats: Path) -> dict[str, Any]:
    """Return what stays as it is while the experts that were found are trained."""
    from mergekit_lite.calibrate.freeze_mask import freeze_mask
    from mergekit_lite.sources import resolve

    model = resolve(str(folder), relative_to=Path(), kind="checkpoint")
    return freeze_mask(model, found["experts"], stats)


def _write_mask(mask: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(mask, indent=2) + "\n", encoding="utf-8")
    note(f"wrote {file}")

"""`mergekit-lite moe`: verbs for routed models."""

from __future__ import annotations

import click

from mergekit_lite.cli.moe_add_expert import command as add_expert
from mergekit_lite.cli.moe_check_compat import command as check_compat
from mergekit_lite.cli.moe_embed import command as embed
from mergekit_lite.cli.moe_fit_router import fit, route
from mergekit_lite.cli.moe_probe import command as probe
from mergekit_lite.cli.moe_scores import command as scores
from mergekit_lite.cli.moe_to_dense import command as to_dense


@click.group("moe")
def command() -> None:
    """Look into routed models. A recipe with `moe:` makes one: `mergekit-lite run`."""


command.add_command(add_expert)
command.add_command(check_compat)
command.add_command(probe)
command.add_command(fit)
command.add_command(route)
command.add_command(to_dense)
command.add_command(scores)
command.add_command(embed)

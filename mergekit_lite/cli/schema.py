"""`mergekit-lite schema`: print the JSON schema of recipes."""

from __future__ import annotations

import click

from mergekit_lite.cli._output import print_json


@click.command(short_help="Print the JSON schema of recipes.")
def command() -> None:
    """Print the JSON schema of recipes, installed third-party ops included.

    \b
    An editor that speaks YAML checks a recipe whose first line is
      # yaml-language-server: $schema=recipe.schema.json
    """
    from mergekit_lite.ops import registry
    from mergekit_lite.recipe.json_schema import json_schema

    print_json(json_schema(registry()))

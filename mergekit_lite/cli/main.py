"""The command `mergekit-lite`: a group that imports a verb only when it is called."""

from __future__ import annotations

import gc
import importlib
import keyword
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

import mergekit_lite
from mergekit_lite.cli._errors import guard, wants_json
from mergekit_lite.errors import nearest

# The one-line help stands here so that `--help` reads no verb's module.
VERBS: Mapping[str, str] = {
    "run": "Merge the models of a recipe into a folder.",
    "plan": "Show what a run would do and cost; reads headers only.",
    "check": "Report every problem of a recipe at once.",
    "verify": "Recheck a merged folder against its lock file.",
    "ops": "List the operations, or show one.",
    "inspect": "Summarise a checkpoint from its headers.",
    "eval": "Score a model, and compare it with its parents.",
    "search": "Find the parameters of a recipe that validation data likes best.",
    "diff": "Compare two checkpoints, layer by layer.",
    "calibrate": "Measure a model on texts, for methods that need data.",
    "moe": "Look into routed models.",
    "report": "Show how the experts of a recipe differ and where they disagree.",
    "extract-lora": "Take a LoRA adapter out of a fine-tuned model.",
    "compress": "Compress a fine-tune into a patch of its base.",
    "apply": "Make the model that a patch stands for.",
    "store": "Keep several fine-tunes of one base in one file.",
    "adapter": "Fold, mask, split off or route adapters.",
    "export": "Write a model as codes and scales, or as a GGUF file.",
    "convert": "Turn a checkpoint of PyTorch pickles into safetensors.",
    "import": "Convert a mergekit recipe.",
    "schema": "Print the JSON schema of recipes.",
    "zoo": "Small real models and experts for first steps.",
}


class Program(click.Group):
    """The group of all verbs, behind the one error sink."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        # `import` is a word of Python, so its module is `import_`.
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name.replace("-", "_")
        module = importlib.import_module(f"mergekit_lite.cli.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            hint = nearest(args[0], VERBS)
            ctx.fail(f"no verb `{args[0]}`{'; ' + hint if hint else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        code: list[int | None] = [0]

        def action() -> None:
            extra["standalone_mode"] = False
            result = click.Group.main(self, args=args, prog_name=prog_name, **extra)
            # Outside standalone mode click returns the code of `ctx.exit()`, it does not raise it.
            code[0] = result if isinstance(result, int) else 0

        words = sys.argv[1:] if args is None else args
        # Imports and plans make many objects and no garbage: looking for it takes a twentieth of
        # a short command.
        before = gc.get_threshold()
        gc.set_threshold(100_000, *before[1:])
        try:
            failed = guard(action, as_json=wants_json(words))
        finally:
            gc.set_threshold(*before)
        sys.exit(failed or code[0])


@click.group(
    "mergekit-lite",
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(mergekit_lite.__version__, prog_name="mergekit-lite")
@click.pass_context
def main(context: click.Context) -> None:
    """Merge and compress model checkpoints from a recipe, as a stream.

    Exit codes: 0 done; 1 failed; 2 recipe or usage; 3 data, quality or verification; 4 disk or
    memory; 5 source missing; 130 interrupted, run the same command again to resume.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())

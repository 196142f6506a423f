"""Runs mergekit: executed by the Python of an environment that has it, and by no test directly.

Reads a JSON list of jobs from the file that is named first, and writes what became of each, by
name, to the one that is named second. One process for all, because mergekit takes ten seconds to
start.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import yaml


def merge(job: dict[str, str]) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    os.chdir(job["cwd"])
    LoaderCache().loaders.clear()
    options = MergeOptions(
        quiet=True,
        random_seed=0,
        lora_merge_cache=job["out"] + ".loras",
        write_model_card=False,  # it would ask the Hub about every model
    )
    text = job["text"]
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), job["out"], options, text)


def merge_files(job: dict[str, str]) -> None:
    from click.testing import CliRunner
    from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache, main

    os.chdir(job["cwd"])
    SimpleLoaderCache._instance = None
    config = Path(job["out"] + ".yml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(job["text"])
    result = CliRunner().invoke(main, [str(config), job["out"]], catch_exceptions=False)
    if result.exit_code:
        raise RuntimeError(result.output)


def merge_several(job: dict[str, str]) -> None:
    from click.testing import CliRunner
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.multimerge import main

    os.chdir(job["cwd"])
    LoaderCache().loaders.clear()
    config, work = Path(job["out"] + ".yml"), job["out"] + ".stages"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(job["text"])
    words = [str(config), "--out-path", job["out"], "-I", work, "--no-write-model-card", "--quiet"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    if result.exit_code:
        raise RuntimeError(result.output)


KINDS = {"merge": merge, "files": merge_files, "several": merge_several}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    answers = {}
    for job in jobs:
        try:
            KINDS[job["kind"]](job)
            answers[job["name"]] = ""
        except Exception:
            answers[job["name"]] = traceback.format_exc()
    Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()

"""Time this project against mergekit 0.1.5 and against plain input and output.

    python benchmarks/compare.py                        # 0.55 B parameters x 4, three rounds
    python benchmarks/compare.py --size 0.05 --rounds 1 --methods ties,linear

Every figure is of a whole process, start-up included, on files in the page cache. In each round
every method is run in turn: floor, ours, the peer; so that what else the machine does falls on
all alike. Before each run dirty pages are flushed. The first round also checks that both wrote
the same merge. It takes about 9 GB of disk with the default size; outputs are deleted after each
run, models and the peer's environment are kept for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from floor import floor
from machine import describe
from methods import Method, methods
from process import CommandFailed, Usage, measure
from programs import ROOT, Program, install_peer, ours, peer, write_recipe
from table import Rounds, markdown, wall

HERE = Path(__file__).resolve().parent


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_models(folder: Path, size: float, shards: int) -> dict[str, int]:
    """Make the models in a process of their own: this one must stay small to measure others."""
    command = [sys.executable, str(HERE / "llama_set.py"), str(folder)]
    command += ["--size", str(size), "--shards", str(shards)]
    found: dict[str, int] = json.loads(subprocess.check_output(command))
    return found


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


class Bench:
    """The folder a comparison works in, and the two programs it runs."""

    def __init__(self, folder: Path, other: Program | None, keep: bool) -> None:
        self.folder = folder
        self.mine = ours(folder / "cache")
        self.other = other
        self.keep = keep
        for name in ("recipes", "logs", "out"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def run(
        self, program: Program, recipe: dict[str, Any], name: str, *, known: bool = False
    ) -> tuple[Usage, Path]:
        """Merge once into an empty place and return the figures and the output folder.

        Unless the inputs are to be `known`, the checksums that we remember of them are dropped.
        """
        if not known:
            (self.folder / "cache" / "digests.json").unlink(missing_ok=True)
        label = f"{name}.{program.name}"
        out = self.folder / "out" / label
        shutil.rmtree(out, ignore_errors=True)
        path = write_recipe(self.folder / "recipes" / f"{label}.yaml", recipe)
        os.sync()
        log = self.folder / "logs" / f"{label}.log"
        return measure(program.merge(path, out), log, program.environment), out

    def drop(self, out: Path) -> None:
        if not self.keep:
            shutil.rmtree(out, ignore_errors=True)

    def agree(self, method: Method, base: Path, mine: Path, theirs: Path) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "agreement.py"), str(base), str(mine), str(theirs)]
        done = subprocess.run(
            [*command, method.agreement], capture_output=True, text=True, check=False
        )
        if not done.stdout:
            return {"kind": method.agreement, "reason": done.stderr.strip()[-300:]}
        return {"kind": method.agreement, **json.loads(done.stdout)}

    def one_round(self, method: Method, found: Rounds, models: Path) -> None:
        """Measure floor, ours, ours again, ours with our own defaults, and the peer."""
        inputs = [file for name in method.inputs for file in weight_files(models / name)]
        os.sync()
        found.floors.append(floor(inputs, [found.write_bytes], self.folder / "out"))
        usage, mine = self.run(self.mine, method.ours, method.name)
        found.ours.append(usage)
        self.drop(mine)
        usage, mine = self.run(self.mine, method.ours, method.name, known=True)
        found.again.append(usage)
        if method.own is not None:
            usage, out = self.run(self.mine, method.own, method.name + "-own")
            found.own.append(usage)
            self.drop(out)
        if self.other is not None:
            usage, theirs = self.run(self.other, method.peer, method.name)
            found.peer.append(usage)
            if not found.agreement:
                found.agreement = self.agree(method, models / "base", mine, theirs)
            self.drop(theirs)
        self.drop(mine)


def warm_up(bench: Bench, methods: Sequence[Method]) -> dict[str, float]:
    """Run each of our merges once with an empty cache: what it needs is compiled, and kept."""
    shutil.rmtree(bench.folder / "cache", ignore_errors=True)
    seconds: dict[str, float] = {}
    for method in methods:
        for recipe in filter(None, (method.ours, method.own)):
            usage, out = bench.run(bench.mine, recipe, f"{method.name}-first")
            shutil.rmtree(out, ignore_errors=True)
            seconds[method.name] = round(max(seconds.get(method.name, 0.0), usage.wall), 2)
    return seconds


def start_up(bench: Bench, times: int = 5) -> dict[str, dict[str, float]]:
    """Time `--help` of both programs."""
    found = {}
    for program in filter(None, (bench.mine, bench.other)):
        start = [word for word in program.start if word != "run"]
        log = bench.folder / "logs" / f"help.{program.name}.log"
        uses = [measure([*start, "--help"], log, program.environment) for _ in range(times)]
        found[program.name] = wall(uses)
    return found


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    known = list(methods(Path(), 2, "bfloat16"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=0.55, help="parameters of each model, in 1e9")
    parser.add_argument("--shards", type=int, default=2, help="files of each input model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(known), help="comma-separated")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench", help="where to work")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has the peer installed")
    parser.add_argument("--no-peer", action="store_true", help="only ours and the floor")
    parser.add_argument("--peer-dtype", default="bfloat16", help="dtype the peer computes in")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--keep", action="store_true", help="leave the merged models on disk")
    arguments = parser.parse_args(words)
    arguments.methods = arguments.methods.split(",")
    if unknown := set(arguments.methods) - set(known):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return arguments


def compare(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Run everything and return the figures and an exit code (1: two outputs disagree)."""
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    facts = describe(folder)
    other = None
    if not arguments.no_peer:
        python = arguments.peer_python or install_peer(folder / "peer")
        other = peer(python.absolute())
    say(f"models of {arguments.size:g} B parameters in {folder}")
    models = folder / f"models-{arguments.size:g}"
    shape = make_models(models, arguments.size, arguments.shards)
    bench = Bench(folder, other, arguments.keep)
    table = methods(models, shape["layers"], arguments.peer_dtype)
    first = warm_up(bench, [table[name] for name in arguments.methods])
    found = {}
    for name in arguments.methods:
        read = sum(
            f.stat().st_size for part in table[name].inputs for f in weight_files(models / part)
        )
        written = 2 * shape["parameters"]
        found[name] = Rounds(name, table[name].goal, read, written)
    for number in range(arguments.rounds):
        for name in arguments.methods:
            bench.one_round(table[name], found[name], models)
            last = found[name]
            theirs = f", peer {last.peer[-1].wall:.2f} s" if last.peer else ""
            say(f"round {number + 1} {name}: ours {last.ours[-1].wall:.2f} s{theirs}")
    rows = [rounds.summary() for rounds in found.values()]
    report = {
        "machine": facts,
        "model": shape,
        "rounds": arguments.rounds,
        "peer_dtype": arguments.peer_dtype,
        "ours": bench.mine.versions("numpy", "numba", "safetensors"),
        "peer": other.versions("mergekit", "torch", "transformers") if other else None,
        "help": start_up(bench),
        "first_runs": first,
        "methods": rows,
    }
    apart = [row["method"] for row in rows if row.get("agreement", {}).get("reason")]
    return report, 1 if apart else 0


def main() -> int:
    arguments = parse()
    try:
        report, code = compare(arguments)
    except CommandFailed as error:
        say(str(error))
        return 2
    print(markdown(report["methods"]))
    print("\nseconds: median (best); again: checksums of the inputs remembered from a run before")
    print("MB: resident in the whole process tree (of these, anonymous)")
    for name, figures in report["help"].items():
        print(f"{name} --help: {figures['median']:.2f} s (best {figures['best']:.2f})")
    print(f"first runs of ours, kernels compiling, in s: {report['first_runs']}")
    print(json.dumps(report["machine"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())

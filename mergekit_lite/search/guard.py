"""Names of data that models are usually tested on, which no parameter is to be chosen by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.quality.data import KINDS, Data, Texts
from mergekit_lite.sources.zoo import SCHEME

TEST_SETS = (
    "agieval", "aime", "alpacaeval", "arcchallenge", "arceasy", "arenahard", "bbh",
    "bigbenchhard", "boolq", "ceval", "cmmlu", "commonsenseqa", "copa", "drop", "gpqa", "gsm8k",
    "hellaswag", "humaneval", "humanevalplus", "ifeval", "lambada", "livecodebench", "longbench",
    "math500", "mbpp", "mbppplus", "mgsm", "mmlu", "mmlupro", "mmmu", "mtbench", "musr",
    "naturalquestions", "openbookqa", "piqa", "ruler", "sciq", "simpleqa", "siqa", "squad", "swag",
    "swebench", "triviaqa", "truthfulqa", "winogrande", "wmdp", "xcopa",
)  # fmt: skip
"""Benchmarks that results are published on, without blanks and signs."""
CHOOSING = ("train", "training", "validation", "valid", "val", "dev", "development", "calibration")
"""Words of a name that say that a part of a benchmark may be chosen by."""
TESTING = ("test", "tests", "testing", "heldout")
"""Words of a name that say that it is for testing."""


def require_no_test_sets(files: Mapping[str, str], where: str) -> None:
    """Check that no data is by its name what results are tested on.

    Args:
        files: name -> file.
        where: the place that names them.

    Raises:
        RecipeError: with a problem for each that is.
    """
    hint = (
        "choose by other texts, such as its training or validation part; if it is none,"
        " say so with --allow-test-data"
    )
    problems = [
        Problem(f"`{name}` ({file}) is {reason}, and what is chosen by it cannot be tested on it",
                where, hint)
        for name, file in files.items()
        if (reason := _reason(name, file))
    ]  # fmt: skip
    if problems:
        raise RecipeError(problems)


def require_apart(data: Sequence[Data], test: Sequence[Data], where: str) -> None:
    """Check that nothing that is chosen by is tested on as well.

    Raises:
        RecipeError: a window or a question is in both.
    """
    problems = []
    for held_out in test:
        for one in data:
            shared = set(one.units) & set(held_out.units)
            if shared:
                what = (
                    f"`{held_out.name}` of `test` has {len(shared)} of the"
                    f" {'windows' if isinstance(one, Texts) else KINDS[type(one)]} of `{one.name}`"
                )
                problems.append(Problem(what, where, "test on what nothing was chosen by"))
    if problems:
        raise RecipeError(problems)


def _reason(name: str, file: str) -> str:
    """Return what a name or a file's name says of data, empty where it is nothing of the kind."""
    if file.startswith(SCHEME):
        return "" if file.endswith(".validation") else "the zoo's text for tests"
    own = _words(name) + _words(PurePath(file).name)
    words = own + _words(PurePath(file).parent.name)
    if any(word in CHOOSING for word in words):
        return ""
    for first in range(len(words)):
        for last in range(first + 1, min(first + 3, len(words)) + 1):
            if (joined := "".join(words[first:last])) in TEST_SETS:
                return f"the benchmark `{joined}`"
    told = next((word for word in own if word in TESTING), "")
    return f"called `{told}`" if told else ""


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]

"""What was checked and what came of it, also in the form that CI systems read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from mergekit_lite.errors import DataError, Problem
from mergekit_lite.quality.scores import Evaluation


@dataclass(frozen=True)
class Verdict:
    """One thing that was checked.

    Attributes:
        name: what, such as `german: recovery of german`.
        found: what came of it, such as `0.912 [0.880, 0.941]`.
        wanted: what it must be, such as `at least 0.95`.
        holds: whether it is.
        problem: what is wrong where it is not.
    """

    name: str
    found: str
    wanted: str
    holds: bool
    problem: Problem | None = None


def verdicts_of(found: Evaluation) -> list[Verdict]:
    """Return what is checked of every model: that it loads, runs, and has no fault."""
    faults = [
        Verdict(f"fault: {problem.where}", problem.what, "none", False, problem)
        for problem in found.faults
    ]
    return [Verdict("loads", "yes", "yes", True), *faults]


def require_all(verdicts: Sequence[Verdict]) -> None:
    """Raise what does not hold.

    Raises:
        DataError: with one problem for each.
    """
    fallen = [verdict for verdict in verdicts if not verdict.holds]
    if fallen:
        raise DataError(
            [v.problem or Problem(f"{v.found}, must be {v.wanted}", v.name) for v in fallen]
        )


def junit(verdicts: Sequence[Verdict], suite: str) -> str:
    """Return verdicts as JUnit XML, a test case each.

    Args:
        verdicts: what was checked.
        suite: name of the suite.
    """
    fallen = sum(not verdict.holds for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(fallen), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    inside = ElementTree.SubElement(root, "testsuite", {"name": suite, **counts})
    for verdict in verdicts:
        case = ElementTree.SubElement(
            inside, "testcase", {"classname": "mergekit-lite", "name": verdict.name}
        )
        said = f"{verdict.found}, must be {verdict.wanted}"
        if verdict.holds:
            ElementTree.SubElement(case, "system-out").text = said
        else:
            hint = verdict.problem.hint if verdict.problem else ""
            ElementTree.SubElement(case, "failure", {"message": said}).text = hint
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"

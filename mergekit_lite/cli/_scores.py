"""How scores and what was checked of them are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.cli._output import note, table

if TYPE_CHECKING:
    from mergekit_lite.quality.results import Baseline
    from mergekit_lite.quality.scores import Evaluation, Score
    from mergekit_lite.quality.verdicts import Verdict


def write_junit(verdicts: Sequence[Verdict], file: Path | None, what: str) -> None:
    """Write what was checked as JUnit XML, where a file for it is named."""
    from mergekit_lite.quality.verdicts import junit

    if file is not None:
        file.write_text(junit(verdicts, f"mergekit-lite: {what}"), encoding="utf-8")


def tell_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Say on stderr what was checked, a line each, and raise what does not hold.

    Raises:
        DataError: with one problem for each bound that fell.
    """
    from mergekit_lite.quality.verdicts import require_all

    rows = [(v.name, v.found, v.wanted, "holds" if v.holds else "FELL") for v in verdicts]
    note(table(("checked", "found", "wanted", ""), rows))
    require_all(verdicts)


def score_table(found: Evaluation, earlier: Baseline | None = None) -> str:
    """Return one line for each data and model: its score, and what MODEL has of it."""
    from mergekit_lite.quality.measures import measured
    from mergekit_lite.quality.scores import ChoiceScore, TaskScore
    from mergekit_lite.quality.subjects import MERGE

    rows = []
    for data in found.data:
        own = found.scores[MERGE][data]
        others = {name: scores[data] for name, scores in found.scores.items() if name != MERGE}
        if earlier is not None and data in earlier.scores:
            others["baseline"] = earlier.scores[data]
        rows.append((data, MERGE, *_cells(own), "", "", "", "", ""))
        for name, score in others.items():
            recovery = measured("recovery", own, score)
            flips = ""
            if isinstance(own, ChoiceScore | TaskScore):
                flips = f"{100 * measured('flips', own, score).value:.1f} %"
            like = found.likeness.get(name, {}).get(data)
            rows.append(
                (
                    data,
                    name,
                    *_cells(score),
                    f"{recovery.value:.3f} [{recovery.low:.3f}, {recovery.high:.3f}]",
                    f"{like.mean_kl:.4f}" if like and like.tokens else "",
                    f"{100 * like.agreement:.1f} %" if like and like.tokens else "",
                    f"{like.similarity:.4f}" if like and like.similarities else "",
                    flips,
                )
            )
    header = ("data", "model", "score", "", "recovery [95 %]", "KL", "agreement", "cosine", "flips")
    return table(header, rows, "llrlrrrrr")


def _cells(score: Score) -> tuple[str, str]:
    from mergekit_lite.quality.scores import PairScore, TaskScore, TextScore

    if isinstance(score, TaskScore):
        return f"{score.mean:.4f}", f"{score.metric} over {len(score.values)}"
    if isinstance(score, PairScore):
        return f"{score.correlation:.4f}", f"correlation over {len(score.cosines)}"
    if isinstance(score, TextScore):
        return f"{score.bits_per_byte:.4f}", f"bits/byte, perplexity {score.perplexity:.4g}"
    return f"{100 * score.accuracy:.1f} %", f"right of {len(score.answers)}"

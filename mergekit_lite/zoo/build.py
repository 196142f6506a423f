"""Make full fine-tuned experts in the cache, and complete the record of an adapter."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from mergekit_lite.errors import RecipeError, SourceError
from mergekit_lite.zoo.catalog import Expert


def require_training(out: Path | None = None) -> None:
    """Check that what trains and scores is installed, and that `out` is free.

    Raises:
        SourceError: transformers or PEFT is not installed.
        RecipeError: `out` exists already.
    """
    missing = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise SourceError(
            f"training and scoring need the package(s) {', '.join(missing)}",
            "zoo",
            'install them with `pip install "mergekit-lite[zoo]"`',
        )
    if out is not None and out.exists():
        raise RecipeError("the folder is there already", str(out), "choose another with `--out`")


def build_full(
    expert: Expert, base: Path, data: Path, out: Path, report: Callable[[int, float], None]
) -> Path:
    """Return the folder of a fully fine-tuned expert, training it if it is not there yet.

    Arguments are those of `train_adapter`. The folder appears complete or not at all.
    """
    if (out / "config.json").is_file():
        return out
    require_training()
    from mergekit_lite.zoo.train import train_full

    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        train_full(expert, base, data, partial, report)
        partial.chmod(0o755)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def record_scores(expert: Expert, folder: Path) -> dict[str, float]:
    """Score the base and the adapter in `folder` on the expert's own held-out text.

    The bits per byte are added to the adapter's `TRAINING.json` and returned.
    """
    from mergekit_lite.zoo.score import score

    base, own = score(["zoo:smol", str(folder)], domains=[expert.name])
    file = folder / "TRAINING.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["bits_per_byte"] = {
        "text": f"{expert.name}.txt, first {base.windows} windows ({base.nbytes} bytes)",
        "base": round(base.bits_per_byte, 4),
        "expert": round(own.bits_per_byte, 4),
    }
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return {"base": base.bits_per_byte, "expert": own.bits_per_byte}

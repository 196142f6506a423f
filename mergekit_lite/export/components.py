"""Configs of a pipeline's components, which name a dtype of their own."""

from __future__ import annotations

import json
from pathlib import Path

from mergekit_lite.export.config import CONFIG_FILE, DTYPE_KEYS, parse_config
from mergekit_lite.plan.layout import OUTPUT_DTYPES, main_dtype
from mergekit_lite.plan.types import Plan


def correct_dtypes(plan: Plan, folder: Path) -> None:
    """Make every component's config in `folder` name the dtype that its weights now have."""
    names = {stored: name for name, stored in OUTPUT_DTYPES.items()}
    for component in sorted({s.file.rpartition("/")[0] for s in plan.shards if "/" in s.file}):
        path = folder / component / CONFIG_FILE
        if not path.is_file():
            continue
        config = parse_config(path.read_bytes(), str(path))
        start = f"{component}/"
        dtype = names.get(main_dtype(job for job in plan.jobs if job.name.startswith(start)), "")
        wrong = {key: dtype for key in DTYPE_KEYS if dtype and config.get(key) not in (None, dtype)}
        if wrong:
            text = json.dumps({**config, **wrong}, indent=2, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")

"""The model card: front matter for the Hub, no path of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mergekit_lite.engine.options import ExpertReport
from mergekit_lite.export.card import Parent, _sentence, card, front_matter
from mergekit_lite.export.labels import hub_id, stored_dtypes, without_paths
from mergekit_lite.export.manifest import report_data
from mergekit_lite.plan.types import Input

from .builders import merged, plan_of, report_of

RECIPE = {
    "base": "./base",
    "experts": {"math": {"model": "./math", "steps": [{"dare": {}}]}},
    "steps": [{"ties": {"density": 0.2}}],
}


def write_readme(root: Path, **facts: Any) -> None:
    root.mkdir(exist_ok=True)
    (root / "README.md").write_text(f"---\n{yaml.safe_dump(facts)}---\n# A model\n")


def matter_of(tmp_path: Path, **configs: dict[str, Any]) -> dict[str, Any]:
    plan = plan_of(RECIPE, base=tmp_path / "base", math=tmp_path / "math")
    models = {
        name: SimpleNamespace(config=configs.get(name, {}), plan=None) for name in plan.inputs
    }
    text = card(plan, models, report_of(math=ExpertReport(1, 1, 1, 0.5)), "merged")  # type: ignore[arg-type]
    (tmp_path / "README.md").write_text(text)
    assert str(tmp_path) not in text
    assert "| math | math |" in text
    assert "arXiv 2306.01708" in text
    return front_matter(tmp_path)


def test_facts_that_agree_are_kept(tmp_path: Path) -> None:
    for name in ("base", "math"):
        facts = {"license": "apache-2.0", "pipeline_tag": "text-generation", "language": ["en"]}
        write_readme(tmp_path / name, **facts)
    matter = matter_of(
        tmp_path, base={"_name_or_path": "org/base"}, math={"_name_or_path": "org/math"}
    )
    assert matter == {
        "base_model": ["org/base", "org/math"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "license": "apache-2.0",
        "tags": ["merge", "mergekit-lite", "ties"],
    }


def test_licences_that_differ_are_other(tmp_path: Path) -> None:
    write_readme(tmp_path / "base", license="mit", language="en")
    write_readme(tmp_path / "math", license="apache-2.0", language="de")
    matter = matter_of(tmp_path)
    assert matter["license"] == "other"
    assert "language" not in matter


def test_named_licences_are_compared_by_name(tmp_path: Path) -> None:
    for name in ("base", "math"):
        write_readme(tmp_path / name, license="other", license_name="llama3")
    matter = matter_of(tmp_path)
    assert matter["license_name"] == "llama3"


def test_nothing_known_nothing_claimed(tmp_path: Path) -> None:
    matter = matter_of(tmp_path)
    assert "license" not in matter
    assert "base_model" not in matter


def test_a_model_on_no_hub_is_traced_to_what_it_was_made_from(tmp_path: Path) -> None:
    write_readme(tmp_path / "base", base_model="org/origin")
    write_readme(tmp_path / "math", base_model=["org/origin", "/home/me/x", 3])
    assert matter_of(tmp_path)["base_model"] == ["org/origin"]


def test_the_zoo_says_what_its_base_is(tmp_path: Path) -> None:
    plan = plan_of(RECIPE, base=tmp_path, math=tmp_path / "math")
    inputs = {**plan.inputs, "base": Input("zoo:smol", str(tmp_path), "checkpoint")}
    (tmp_path / "README.md").write_text("# Smol, dequantised from 4 bits\n")
    models = {name: SimpleNamespace(config={}, plan=None) for name in inputs}
    text = card(replace(plan, inputs=inputs), models, report_of(), "merged")  # type: ignore[arg-type]
    assert "| base | zoo:smol (Smol, dequantised from 4 bits) |" in text


def test_repeated_ids_are_named_once(tmp_path: Path) -> None:
    same = {"_name_or_path": "org/base"}
    assert matter_of(tmp_path, base=same, math=same)["base_model"] == ["org/base"]


@pytest.mark.parametrize(
    ("reference", "root", "revision", "config", "expected"),
    [
        ("org/model@main", "x", "abc", {}, "org/model"),
        ("org/model", "org/model", "", {}, None),
        ("m", "hub/models--org--model-7b/snapshots/abc", "", {}, "org/model-7b"),
        ("m", "m", "", {"_name_or_path": "org/model"}, "org/model"),
        ("m", "m", "", {"_name_or_path": "/home/me/model"}, None),
        ("m", "m", "", {"_name_or_path": "./org/model"}, None),
    ],
)
def test_hub_ids(
    reference: str, root: str, revision: str, config: dict[str, Any], expected: str | None
) -> None:
    assert hub_id(Input(reference, root, "checkpoint", revision), config) == expected


def test_paths_are_cut() -> None:
    value = {"base": "/home/me/base", "list": ["~/x/y", "../up/z", "C:\\m\\w", "zoo:smol", "a/b"]}
    assert without_paths(value) == {"base": "base", "list": ["y", "z", "w", "zoo:smol", "a/b"]}


@pytest.mark.parametrize(
    "text", ["no front matter", "---\n: : :\n---\n", "---\n- a\n---\n", "---\n"]
)
def test_unreadable_front_matter_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == {}


def test_no_file_of_a_merge_names_this_machine(tmp_path: Path, recipe: dict[str, Any]) -> None:
    out = merged(tmp_path / "out", recipe)
    parent = str(Path(recipe["base"]).parent)
    for name in ("README.md", "merge_report.json"):
        assert parent not in (out / name).read_text(), name


def test_mixed_dtypes_are_all_named(tmp_path: Path) -> None:
    plan = plan_of({"steps": []}, base=tmp_path, math=tmp_path)
    (job,) = plan.jobs
    jobs = (job, replace(job, name="norm", dtype="F32", shape=(9,)), replace(job, name="b"))
    mixed = replace(plan, jobs=jobs, dtype="BF16")
    assert stored_dtypes(plan) == ["BF16"]
    assert stored_dtypes(mixed) == ["F32", "BF16"]
    assert report_data(mixed, report_of())["output"]["dtype"] == ["F32", "BF16"]
    sentence = _sentence(mixed, [Parent("base", "b", None), Parent("math", "m", None)])
    assert sentence.endswith("3 tensors, 3 of them computed, stored as F32 and BF16.")

"""The model card of a merge: front matter that the Hub reads, and a body that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite import ops
from mergekit_lite.checkpoint.index import DIFFUSERS_STEM
from mergekit_lite.export.code_files import TARGETS
from mergekit_lite.export.gates import routed_text
from mergekit_lite.export.labels import HUB_ID, hub_id, short_name, stored_dtypes, without_paths
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.stages import leaf_models
from mergekit_lite.plan.types import Input, Plan

if TYPE_CHECKING:
    from mergekit_lite.engine.options import Report
    from mergekit_lite.sources import Model


@dataclass(frozen=True)
class Parent:
    """What the card says about one input.

    Attributes:
        name: `base`, or the expert's name in the recipe.
        label: what to call the model; never a path.
        repository: its Hub id, where it is known.
        facts: front matter of the input's own card.
    """

    name: str
    label: str
    repository: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lineage(self) -> list[str]:
        """Its Hub id; of a model that is on no Hub, those that its card says it was made from."""
        if self.repository:
            return [self.repository]
        stated = self.facts.get("base_model") or []
        names = [stated] if isinstance(stated, str) else stated
        return [name for name in names if isinstance(name, str) and HUB_ID.fullmatch(name)]

    @property
    def license(self) -> str:
        """The licence its card states (the name behind `other`, if given), or an empty string."""
        stated = self.facts.get("license")
        if stated == "other" and self.facts.get("license_name"):
            stated = self.facts["license_name"]
        return ", ".join(stated) if isinstance(stated, list) else str(stated or "")


def write_card(plan: Plan, models: Mapping[str, Model], report: Report, folder: Path) -> None:
    """Write README.md into `folder`; its title is the folder's final name."""
    title = folder.name.removesuffix(".partial")
    (folder / "README.md").write_text(card(plan, models, report, title), encoding="utf-8")


def card(plan: Plan, models: Mapping[str, Model], report: Report, title: str) -> str:
    """Return the text of the card."""
    known = leaf_models(models)
    parents = [
        Parent(
            name,
            _label(source),
            hub_id(source, known[name].config),
            front_matter(Path(source.root)),
        )
        for name, source in plan.leaves.items()
    ]
    parents.sort(key=lambda parent: not f"/{parent.name}".endswith("/base"))
    parents.sort(key=lambda parent: parent.name != "base")
    parts = (
        f"---\n{_yaml(matter(plan, parents))}---",
        f"# {title}",
        _sentence(plan, parents),
        f"## Recipe\n\n```yaml\n{_yaml(_recipe(plan))}```",
        f"## Inputs\n\n{_inputs(parents, report)}",
        *([f"## Experts\n\n{routed_text(plan.moe)}"] if plan.moe else []),
        f"## Method\n\n{_methods(plan)}",
        _use(plan, title, text_model="model_type" in (models["base"].config or {})),
    )
    return "\n\n".join(parts) + "\n"


def matter(plan: Plan, parents: Sequence[Parent]) -> dict[str, Any]:
    """Return the front matter: only what is known, nothing invented."""
    known: dict[str, Any] = {}
    # Repeated ids break the Hub's tree of models.
    if repositories := list(dict.fromkeys(name for p in parents for name in p.lineage)):
        known["base_model"] = repositories
    # The Hub infers `merge` only from two ids or more, so it is said.
    known["base_model_relation"] = "adapter" if plan.adapter else "merge"
    known["library_name"] = _library(plan)
    for key in ("pipeline_tag", "language"):
        stated = [p.facts[key] for p in parents if p.facts.get(key)]
        if stated and all(value == stated[0] for value in stated):
            known[key] = stated[0]
    known |= _license(parents)
    routed = ["moe"] if plan.moe else []
    imported = ["mergekit"] if plan.compat == "mergekit" else []
    known["tags"] = list(
        dict.fromkeys(["merge", "mergekit-lite", *imported, *routed, *methods(plan)])
    )
    return known


def methods(plan: Plan) -> list[str]:
    """Return the names of the methods the recipe asks for: its presets and combines."""
    names = list(dict.fromkeys(_step_names(plan)))
    specs = ops.registry()
    telling = [n for n in names if n in specs and specs[n].kind in ("preset", "combine")]
    return telling or names


def front_matter(root: Path) -> dict[str, Any]:
    """Return the front matter of the README.md in `root`; empty where there is none to read."""
    import yaml

    try:
        text = (root / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    for end, line in enumerate(lines[1:], 1):
        if line.strip() == "---":
            try:
                facts = yaml.safe_load("\n".join(lines[1:end]))
            except yaml.YAMLError:
                return {}
            return facts if isinstance(facts, dict) else {}
    return {}


def _label(source: Input) -> str:
    """Return what to call an input; one of the zoo with what its own card is headed by.

    The zoo's base is a model "dequantised from 4 bits", which must be said wherever it is named.
    """
    name = short_name(source)
    readme = Path(source.root) / "README.md"
    if not name.startswith("zoo:") or not readme.is_file():
        return name
    lines = readme.read_text(encoding="utf-8").splitlines()
    heading = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return f"{name} ({heading})" if heading else name


def _recipe(plan: Plan) -> dict[str, Any]:
    """Return the recipe without paths, and without the entries that say nothing."""
    plain: dict[str, Any] = without_paths(plan.recipe)
    return {key: value for key, value in plain.items() if value not in ([], {})}


def _license(parents: Sequence[Parent]) -> dict[str, str]:
    stated = {parent.license for parent in parents}
    if stated == {""}:
        return {}
    if len(stated) > 1:
        return {"license": "other"}
    keys = ("license", "license_name", "license_link")
    return {key: parents[0].facts[key] for key in keys if parents[0].facts.get(key)}


def _step_names(plan: Plan) -> Iterable[str]:
    for recipe in (plan.recipe, *(plan.recipe.get("stages") or {}).values()):
        yield from _names_in(recipe)


def _names_in(recipe: Mapping[str, Any]) -> Iterable[str]:
    chains = [recipe.get("steps") or ()]
    chains += [expert.get("steps") or () for expert in (recipe.get("experts") or {}).values()]
    for part in ("slices", "rules"):
        chains += [entry.get("steps") or () for entry in recipe.get(part) or ()]
    for chain in chains:
        for step in chain:
            yield from [step] if isinstance(step, str) else step


def _sentence(plan: Plan, parents: Sequence[Parent]) -> str:
    experts = len(parents) - 1
    noun = "model" if experts == 1 else "models"
    return (
        f"A merge of {experts} {noun} with {parents[0].label}, made with mergekit-lite "
        f"by {_listed(methods(plan))}. "
        f"{plural(len(plan.jobs), 'tensor')}, "
        f"{sum(1 for job in plan.jobs if job.kind == 'merge')} of them computed, "
        f"stored as {' and '.join(stored_dtypes(plan))}."
    )


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names] or ["copying"]
    return ", ".join(quoted)


def _inputs(parents: Sequence[Parent], report: Report) -> str:
    rows = ["| name | model | licence | tensors matched | changed | norm of its delta |"]
    rows += ["|---|---|---|---|---|---|"]
    for parent in parents:
        seen = report.inputs.get(parent.name)
        counts = "| |"
        if seen is not None:
            delta = f"{seen.changed} | {seen.delta_norm:.4g}" if seen.measured else "|"
            counts = f"{seen.matched} | {delta}"
        licence = parent.license or "not stated"
        rows.append(f"| {parent.name} | {parent.label} | {licence} | {counts} |")
    return "\n".join(rows)


def _methods(plan: Plan) -> str:
    specs = ops.registry()
    names = dict.fromkeys([*_step_names(plan), *_ops_in(plan)])
    lines = []
    for spec in (specs[name] for name in names if name in specs):
        lines.append(f"- `{spec.name}`: {spec.summary or spec.title} Paper: {spec.paper}.")
    return "\n".join(lines) or "Every tensor is copied from one of the inputs."


def _ops_in(plan: Plan) -> Iterable[str]:
    for part in (plan, *plan.stages.values()):
        yield from (step.op for job in part.jobs for step in job.steps)


def _library(plan: Plan) -> str:
    """Return the library that loads the output."""
    if plan.adapter:
        return "peft"
    diffusers = any(DIFFUSERS_STEM in shard.file for shard in plan.shards)
    return "diffusers" if diffusers else "transformers"


def _use(plan: Plan, title: str, *, text_model: bool) -> str:
    trust = ", trust_remote_code=True" if plan.moe.get("target") in TARGETS else ""
    pipeline = any("/" in shard.file for shard in plan.shards)
    load = (
        adapter_use(plan, title)
        if plan.adapter
        else (
            "from diffusers import DiffusionPipeline\n\n"
            f'pipeline = DiffusionPipeline.from_pretrained("{title}")\n'
        )
        if pipeline
        else (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{title}", dtype="auto"{trust})\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{title}")\n'
            if text_model
            else "from safetensors.torch import load_file\n\n"
            f'tensors = load_file("{title}/{plan.shards[0].file}")\n'
        )
    )
    return (
        f"## Use\n\n```python\n{load}```\n\n"
        "`recipe.lock.yaml` pins the inputs and the sha256 of every file but this card; "
        f"`mergekit-lite verify {title}` rechecks them, and `merge_report.json` says what each "
        "input contributed."
    )


def adapter_use(plan: Plan, title: str) -> str:
    """Return how an adapter is loaded on its base."""
    base = plan.adapter["base_model_name_or_path"]
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
        f'model = PeftModel.from_pretrained(base, "{title}")\n'
    )


def _yaml(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text

"""Checks a routed model against what loaders do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.compat.entries import entry_findings
from mergekit_lite.moe.compat.loaders import FAMILIES, LOADERS, SIGMOID, VERSIONS, Norm
from mergekit_lite.moe.compat.stored import stored_findings
from mergekit_lite.plan.configs import Config, model_type, value
from mergekit_lite.sources import Model

Verdict = Literal["same", "differs", "fails", "unknown"]
_WORST = ("fails", "differs", "unknown", "same")


@dataclass(frozen=True)
class Finding:
    """What one loader does with a model.

    Attributes:
        loader: its name.
        verdict: `same` function as the config and weights say, another (`differs`), none (`fails`).
        what: in words.
        hint: what to do about it.
    """

    loader: str
    verdict: Verdict
    what: str
    hint: str = ""


@dataclass(frozen=True)
class Report:
    """What loaders do with a routed model.

    Attributes:
        family: its `model_type`.
        experts, per_token: its numbers.
        normalised: whether the weights of a token's experts are meant to add up to 1.
        findings: in the order of the loaders.
    """

    family: str
    experts: int
    per_token: int
    normalised: bool
    findings: tuple[Finding, ...]

    def verdict(self, loader: str) -> Verdict:
        """Return the worst that was found of a loader."""
        found = {finding.verdict for finding in self.findings if finding.loader == loader}
        return next((verdict for verdict in _WORST if verdict in found), "same")

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        verdicts = {
            loader: {"version": VERSIONS[loader], "verdict": self.verdict(loader)}
            for loader in LOADERS
        }
        return {**asdict(self), "loaders": verdicts}


def check_model(model: Model) -> Report:
    """Return what loaders will do with a routed model; only headers and small tensors are read.

    Raises:
        RecipeError: it is not a routed model, or has no config.
    """
    config = model.config
    experts = count(config, EXPERTS)
    if not config or experts is None:
        raise RecipeError(
            "the config names no experts, so there is nothing to check",
            model.reference,
            "give the folder of a routed model",
        )
    per_token = count(config, PER_TOKEN) or 1
    found = [*norm_findings(config, experts, per_token)]
    told = [*entry_findings(config, experts, per_token), *stored_findings(model, experts)]
    found += [Finding(*each) for each in told]
    found.sort(key=lambda finding: LOADERS.index(finding.loader))
    return Report(model_type(config), experts, per_token, _is_normalised(config), tuple(found))


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k")


def count(config: Config, keys: tuple[str, ...]) -> int | None:
    """Return the first of these entries that is a whole number, or the same one for all layers."""
    for key in keys:
        found = value(config, key)
        if isinstance(found, list) and len({str(each) for each in found}) == 1:
            found = found[0]
        if isinstance(found, int):
            return found
    return None


def config_warnings(config: Config, experts: int, per_token: int) -> Iterator[Finding]:
    """Yield what loaders that know the family make of a config otherwise than it says.

    Args:
        config: that will be written.
        experts: in a layer.
        per_token: of these.
    """
    for finding in norm_findings(config or {}, experts, per_token):
        if finding.verdict == "differs":
            yield finding
    for told in entry_findings(config or {}, experts, per_token):
        if told[1] != "same":
            yield Finding(*told)


def _is_normalised(config: Mapping[str, Any]) -> bool:
    """Return whether the config, as transformers reads it, normalises."""
    known = FAMILIES.get(model_type(config))
    norm: Norm = known.norm("transformers") if known else "flag"
    return bool(value(config, "norm_topk_prob")) if norm == "flag" else norm == "always"


def norm_findings(config: Mapping[str, Any], experts: int, per_token: int) -> Iterator[Finding]:
    """Yield for each loader whether it weighs the chosen experts as the config says.

    Args:
        config: of the model.
        experts: in a layer.
        per_token: of these.
    """
    family = model_type(config)
    known = FAMILIES.get(family)
    if known is None:
        for loader in LOADERS:
            yield Finding(loader, "unknown", f"`{family}` is not in the table")
        return
    for loader in LOADERS:
        norm = known.norm(loader)
        if norm == "none":
            yield Finding(loader, "fails", f"has no support for `{family}`. {known.note}".strip())
        elif norm == "unknown":
            yield Finding(
                loader,
                "unknown",
                "whether it makes the weights of a token's experts add up to 1 was not seen",
                "compare a few logits there with those of transformers",
            )
        elif known.norm("transformers") == "other":
            yield _own_rule(loader, norm, per_token)
        else:
            does = bool(value(config, "norm_topk_prob")) if norm == "flag" else norm == "always"
            yield _weighed(config, loader, does, experts == per_token)


def _own_rule(loader: str, norm: Norm, per_token: int) -> Finding:
    """Return whether a loader has the rule of PhiMoE, which weighs two experts one by one."""
    if norm != "other":
        what = "makes the weights of a token's experts add up to 1, where the model has a rule of"
        return Finding(loader, "differs", f"{what} its own", f"do not serve it with {loader}")
    if loader == "vllm" and per_token != 2:
        return Finding(loader, "fails", "takes the model's rule for two experts a token only")
    return Finding(loader, "same", "weighs a token's experts by the model's own rule")


def _weighed(config: Mapping[str, Any], loader: str, does: bool, every_expert: bool) -> Finding:
    """Return whether a loader that normalises, or does not, does what the config says."""
    family = model_type(config)
    known, wanted = FAMILIES[family], _is_normalised(config)
    how = "was run" if loader in known.run else "was read in its source"
    if does == wanted:
        what = f"weighs a token's experts as the config says ({how})"
        return Finding(loader, "same", what, known.note)
    if every_expert and family not in SIGMOID:
        what = f"weighs all experts, whose weights add up to 1 either way ({how})"
        return Finding(loader, "same", what, known.note)
    return Finding(
        loader,
        "differs",
        f"{'makes' if does else 'does not make'} the weights of a token's experts add up to 1,"
        f" whatever `norm_topk_prob` says ({how})",
        _way_out(family, loader, wanted),
    )


def _way_out(family: str, loader: str, wanted: bool) -> str:
    if family == "qwen2_moe" and wanted:
        return "assemble it with `target: glm4_moe`, whose entry all loaders read"
    if family == "qwen3_moe" and not wanted:
        return "set `norm_topk_prob` to true, if the model was trained so"
    return f"do not serve it with {loader}, or let tokens pass all experts"

"""From what a recipe says of routed adapters, and headers, to the mixture that results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergekit_lite.checkpoint import LoraFactors, layer_of
from mergekit_lite.errors import nearest
from mergekit_lite.moe.compat.loaders import LORA_DONORS
from mergekit_lite.moe.lora.gates import LORA_GATES, LoraGate
from mergekit_lite.moe.lora.mixture import Mixture, Module
from mergekit_lite.moe.lora.vectors import check_tasks, check_vectors
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.names import few
from mergekit_lite.recipe.layers import covers
from mergekit_lite.recipe.schema import BASE, Gate, Moe, MoeExpert, Recipe

_OF_DENSE = ("outside", "split", "shared", "routing", "allow")
_OF_EXPERTS = ("prompts", "negative", "data", "noise", "redraw")


def settle_mixture(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Mixture | None:
    """Return the mixture of adapters that a recipe asks for; None with problems noted."""
    if recipe.moe is None or found[BASE].settled:
        return None
    return _Settler(recipe, recipe.moe, found, findings).mixture()


@dataclass
class _Settler:
    recipe: Recipe
    moe: Moe
    found: Mapping[str, View]
    findings: Findings

    def mixture(self) -> Mixture | None:
        before = len(self.findings.all_problems())
        donor = configs.model_type(self.found[BASE].model.config)
        if donor not in LORA_DONORS:
            self.findings.problem(
                f"no code is written for adapters beside a `{donor or 'unnamed'}` model",
                self.recipe.at("base"),
                f"known bases are {', '.join(LORA_DONORS)} models",
            )
        self._check_keys()
        experts = self._experts()
        gate = self._gate()
        if len(self.findings.all_problems()) > before or gate is None:
            return None
        modules = dict(self._modules(experts))
        if not modules and len(self.findings.all_problems()) == before:
            self.findings.problem(
                "no adapter changes a linear layer of the base", self.recipe.at("moe", "experts")
            )
        if len(self.findings.all_problems()) > before:
            return None
        params = self.moe.gate.params if self.moe.gate else {}
        tasks = 0
        if gate.vectors:
            check_vectors(self.recipe, experts, modules, self.findings)
        if gate.name == "glider":
            tasks = check_tasks(self.recipe, experts, str(params["tasks"]), self.findings)
        per_token = self._per_token(gate, len(experts))
        self._check_use(gate, experts, per_token)
        if len(self.findings.all_problems()) > before:
            return None
        return Mixture(
            donor, experts, modules, per_token, gate.name, params, gate.score, tasks,
            self.moe.for_training,
        )  # fmt: skip

    def _check_keys(self) -> None:
        """Refuse what belongs to experts that are feed-forward layers."""
        given = self.moe.model_fields_set
        for key in (key for key in _OF_DENSE if key in given):
            self.findings.problem(
                f"`moe.{key}` says nothing to adapters",
                self.recipe.at("moe", key),
                "leave it out; `target: lora_moe` has experts, experts_per_token, layers and gate",
            )
        for expert in self.moe.experts:
            for key in (key for key in _OF_EXPERTS if key in expert.model_fields_set):
                self.findings.problem(
                    f"`{key}` says nothing to a routed adapter",
                    expert.where,
                    "leave it out; an entry has `expert`, `rows` and `residual_scale`",
                )

    def _experts(self) -> tuple[MoeExpert, ...]:
        listed = self.moe.experts or tuple(
            MoeExpert(expert=name, where=self.recipe.at("experts", name))
            for name in self.recipe.experts
        )
        if not listed:
            self.findings.problem(
                "`moe` has no experts, and neither has the recipe",
                self.recipe.at("moe"),
                "name adapters under `experts`: `math: {lora: ./math-lora}`",
            )
        for expert in listed:
            view = self.found.get(expert.expert)
            if view is None:
                continue
            view.used += 1
            if view.model.adapter is None:
                self.findings.problem(
                    f"expert `{expert.expert}` is a model; `target: lora_moe` routes adapters",
                    expert.where,
                    "make an adapter of it first: `mergekit-lite extract-lora`",
                )
        return tuple(expert for expert in listed if expert.expert in self.found)

    def _gate(self) -> LoraGate | None:
        asked = self.moe.gate or Gate(method="arrow")
        gate, where = LORA_GATES.get(asked.method), self.recipe.at("moe", "gate")
        if gate is None:
            known = ", ".join(sorted(LORA_GATES))
            self.findings.problem(
                f"adapters have no gates called `{asked.method}`",
                where,
                nearest(asked.method, LORA_GATES) or f"known here: {known}",
            )
            return None
        for name, what in gate.problems(asked.params):
            self.findings.problem(what, self.recipe.at("moe", "gate", name))
        return gate

    def _per_token(self, gate: LoraGate, count: int) -> int:
        asked = self.moe.experts_per_token or min(gate.usual, count)
        if asked > count:
            self.findings.problem(
                f"tokens cannot pass {asked} of {count} experts",
                self.recipe.at("moe", "experts_per_token"),
                f"write at most {count}",
            )
        return asked

    def _check_use(self, gate: LoraGate, experts: tuple[MoeExpert, ...], per_token: int) -> None:
        where = self.recipe.at("moe", "gate")
        if self.moe.for_training:
            return
        if gate.name == "zeros" and per_token != len(experts):
            self.findings.problem(
                f"gates of zeros leave it to chance which {per_token} of {len(experts)} adapters a"
                " token passes",
                where,
                f"write `experts_per_token: {len(experts)}` for the mean of all, or"
                " `for_training: true`",
            )
        if gate.name == "random" and per_token != len(experts):
            self.findings.warn(
                "`random` gates send tokens to any adapter until they are trained", where
            )
        roots = {self.found[expert.expert].model.root.resolve() for expert in experts}
        if len(roots) == 1 and len(experts) > 1:
            self.findings.problem(
                f"all {len(experts)} experts are one adapter: the result computes what it does, at"
                " a greater cost",
                self.recipe.at("moe", "experts"),
                "name other adapters; `for_training: true` makes copies for training",
            )

    def _modules(self, experts: tuple[MoeExpert, ...]) -> Iterator[tuple[str, Module]]:
        """Yield the linear layers that adapters change and tokens are routed for."""
        absent: dict[str, list[str]] = {}
        for name, info in self.found[BASE].tensors.items():
            layer = layer_of(name)
            if not name.endswith(".weight") or len(info.shape) != 2 or not self._routed(layer):
                continue
            pairs = tuple(self._pair(expert.expert, name) for expert in experts)
            if not any(pairs):
                continue
            module = name.removesuffix(".weight")
            for expert, pair in zip(experts, pairs, strict=True):
                if pair is None:
                    absent.setdefault(expert.expert, []).append(module)
            outputs, inputs = info.shape
            rank = max(
                self.found[expert.expert].tensors[pair.a].shape[0]
                for expert, pair in zip(experts, pairs, strict=True)
                if pair is not None
            )
            yield module, Module(inputs, outputs, rank, layer, pairs)
        for expert_name, names in absent.items():
            self.findings.warn(
                f"adapter `{expert_name}` leaves alone what others change: {few(names)}; a token"
                " that is given to it there gets the base's",
                self.recipe.at("experts", expert_name),
            )

    def _routed(self, layer: int | None) -> bool:
        asked = self.moe.layers
        return asked is None or (layer is not None and covers(asked, layer))

    def _pair(self, name: str, tensor: str) -> LoraFactors | None:
        """Return an adapter's factors of a weight; None where it has none that can be routed."""
        view = self.found[name]
        adapter = view.model.adapter
        pair = adapter.factors.get(view.own(tensor)) if adapter is not None else None
        if pair is None or pair.rows:
            return None
        shape = view.tensors[pair.a].shape if pair.a else ()
        if not pair.is_plain or pair.transpose or len(shape) != 2:
            kind = pair.kind if not pair.is_plain else "factors of a transposed weight"
            if ".lora_embedding_" in pair.a:
                return None
            self.findings.problem_with(
                f"`{tensor}`",
                f"adapter `{name}` holds {kind}, which is no pair beside a linear layer",
                self.recipe.at("experts", name),
                "merge it into the base, then `mergekit-lite extract-lora`",
            )
            return None
        return pair

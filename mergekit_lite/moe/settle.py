"""From what a recipe says of a routed model, and headers, to what is assembled."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.errors import nearest
from mergekit_lite.moe.assembly import Assembly, FeedForward
from mergekit_lite.moe.children import check_children, children
from mergekit_lite.moe.choose import choose
from mergekit_lite.moe.compat import config_warnings
from mergekit_lite.moe.config import config_of
from mergekit_lite.moe.donors import DENSE, Donor, donor_of
from mergekit_lite.moe.experts import check_experts, width_of
from mergekit_lite.moe.families import FAMILIES, Family, Sizes
from mergekit_lite.moe.gates import GateSpec, registry
from mergekit_lite.moe.outside import check_outside, outside_layers
from mergekit_lite.moe.routing import check_gate, check_routing
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.heads import embedding_of, head_of
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.routed.layers import routed_layers
from mergekit_lite.recipe.layers import covers, format_layers
from mergekit_lite.recipe.schema import Gate, Moe, MoeExpert, Recipe, Routing, SharedExpert

SMALL = 128
"""Width of a shared expert that adds nothing, where it may be any."""


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Assembly | None:
    """Return the routed model that a recipe asks for; None without one, or with problems noted."""
    if recipe.moe is None or found["base"].settled:
        return None
    return Settler(recipe, recipe.moe, found, findings).assembly()


class Settler:
    """Decides what is assembled of several models.

    Args:
        recipe: what is wanted.
        moe: what it says of the routed model.
        found: the base and the experts.
        findings: where problems are noted.
    """

    def __init__(
        self, recipe: Recipe, moe: Moe, found: Mapping[str, View], findings: Findings
    ) -> None:
        self.recipe, self.moe, self.found, self.findings = recipe, moe, found, findings
        self.base = found["base"]
        self.feed = FeedForward.of(self.base.tensors)

    def assembly(self) -> Assembly | None:
        """Return what is assembled; None with problems noted."""
        before = len(self.findings.problems)
        donor = self.donor()
        family = choose(self.recipe, donor, self.findings) if donor else None
        experts = self._experts()
        gate = self._gate(experts)
        if donor is None or family is None or not experts:
            return None
        check_experts(self.recipe, donor, experts, self.found, self.feed, self.findings)
        sizes, shared = self._sizes(donor, family, experts)
        check_children(self.recipe, family, experts, self.found, self.feed, self.findings)
        params = self.moe.gate.params if self.moe.gate else {}
        check_routing(self.recipe, family, donor.layers, self.findings)
        if gate is not None:
            check_gate(
                self.recipe, gate, family, sizes, donor.hidden, experts, self.found, self.findings
            )
        if gate is None or len(self.findings.problems) > before:
            return None
        roots, identical = (
            {layer: self.feed.roots[layer] for layer in layers}
            for layers in (sizes.routed, sizes.identical)
        )
        found = Assembly(
            family, donor, sizes, experts, shared, gate.name, params, roots, self.moe.for_training,
            routing=(self.moe.routing or Routing()) if family is FAMILIES["routed"] else None,
            expand=self.moe.expand, identical=identical,
        )  # fmt: skip
        self.warn_of_loaders(found)
        return found

    def warn_of_loaders(self, assembly: Assembly) -> None:
        """Warn of loaders that will compute something else from what is assembled."""
        sizes = assembly.sizes
        for finding in config_warnings(config_of(assembly), sizes.experts, sizes.per_token):
            told = f"{finding.loader} {finding.what}; {finding.hint}".removesuffix("; ")
            self.findings.warn(told, self.recipe.at("moe", "target"))

    def donor(self) -> Donor | None:
        """Return what the base is; None with the reason noted."""
        where = self.recipe.at("base")
        if routed_layers(self.base.tensors, self.base.model.config):
            what = "the base is a routed model already; `moe` assembles one from dense models"
            self.findings.problem(what, where, "name a dense model as `base`")
            return None
        config = self.base.model.config
        kind = configs.model_type(config)
        if kind not in DENSE or not self.feed.names:
            known = ", ".join(DENSE)
            what = f"no family of routed models computes what a `{kind or 'unnamed'}` model does"
            if not config:
                what = "the base has no config.json, so it cannot be told what it computes"
            elif kind in DENSE:
                what = "the base has no feed-forward layers of gate, up and down projection"
            self.findings.problem(what, where, f"known bases are {known} models")
            return None
        first = next(iter(self.feed.names.values()))
        width, hidden = self.base.tensors[first["gate"]].shape
        return donor_of(config, hidden, width, len(self.feed.names), tied=self._tied())

    def _tied(self) -> bool:
        said = self.base.changes.get(
            "tie_word_embeddings", configs.ties_head(self.base.model.config)
        )
        if isinstance(said, bool):
            return said
        embedding = embedding_of(self.base)
        return embedding is not None and (
            head_of(self.base, self.base.tensors[embedding].shape) is None
        )

    def _experts(self) -> tuple[MoeExpert, ...]:
        experts = self.moe.experts
        if not experts:
            experts = tuple(
                MoeExpert(expert=name, where=self.recipe.at("experts", name))
                for name in self.recipe.experts
            )
        if not experts:
            self.findings.problem(
                "`moe` has no experts, and neither has the recipe",
                self.recipe.at("moe"),
                "name models under `experts`, or `moe: {experts: [base, base]}` for copies",
            )
        known = tuple(expert for expert in experts if expert.expert in self.found)
        return (*known, *children(self.recipe, known, self.findings))

    def _gate(self, experts: tuple[MoeExpert, ...]) -> GateSpec | None:
        known, where = registry(), self.recipe.at("moe", "gate")
        asked = self.moe.gate or self._usual(experts)
        if asked is None:
            self.findings.problem(
                "nothing says how the routers are made",
                self.recipe.at("moe"),
                "give each expert `prompts` or `data`, or write `gate: {method: random}` with"
                " `for_training: true`",
            )
            return None
        spec = known.get(asked.method)
        if spec is None:
            hint = nearest(asked.method, known) or f"known here: {', '.join(sorted(known))}"
            what = f"there is no way to make gates called `{asked.method}`"
            self.findings.problem(what, where, hint)
            return None
        for name, what in spec.problems(asked.params):
            self.findings.problem(what, self.recipe.at("moe", "gate", name))
        return spec

    def _usual(self, experts: tuple[MoeExpert, ...]) -> Gate | None:
        """Return the gate of a recipe that names none."""
        if experts and all(expert.prompts or expert.data for expert in experts):
            return Gate(method="ridge")
        return Gate(method="random") if self.moe.for_training else None

    def _sizes(
        self, donor: Donor, family: Family, experts: tuple[MoeExpert, ...]
    ) -> tuple[Sizes, SharedExpert | None]:
        split = self.moe.split
        count = len(experts) * split
        per_token = self.moe.experts_per_token or min(2, len(experts)) * split
        nulls = self.moe.routing.null_experts if self.moe.routing else 0
        if per_token > count + nulls:
            self.findings.problem(
                f"tokens cannot pass {per_token} of {count} experts",
                self.recipe.at("moe", "experts_per_token"),
                f"write at most {count}",
            )
        width = max(width_of(expert.expert, self.found, self.feed) for expert in experts)
        self._check_split(family, per_token, width)
        width //= split
        shared, shared_width = self._shared(family, width)
        routed = self.layers(donor, family)
        others = outside_layers(self.recipe, family, routed, donor.layers, self.findings)
        sizes = Sizes(count, per_token, width, shared_width, routed, donor.layers, split, others)
        check_outside(self.recipe, family, sizes, donor.hidden, self.findings)
        return sizes, shared

    def _check_split(self, family: Family, per_token: int, width: int) -> None:
        """Note slices that do not come out even, or that loaders may take apart."""
        split, where = self.moe.split, self.recipe.at("moe", "split")
        if split == 1:
            return
        if width % split:
            self.findings.problem(
                f"experts of width {width} cannot be cut into {split} slices of one width",
                where,
                f"take a divisor of {width}",
            )
        if per_token % split:
            self.findings.problem(
                f"a token passes {per_token} slices, which is no whole number of experts"
                f" ({split} slices each)",
                self.recipe.at("moe", "experts_per_token"),
                f"write a multiple of {split}",
            )
        if not family.sigmoid:
            self.findings.warn(
                f"a `{family.name}` model computes its gates in the dtype of its weights: in 16"
                " bits those of two experts may be equal for a token, which then passes slices of"
                " both; `glm4_moe` computes them in fp32",
                where,
            )

    def _shared(self, family: Family, width: int) -> tuple[SharedExpert | None, int]:
        asked, holds = self.moe.shared, family.shared
        if holds is None or (asked is None and not holds.needed):
            return None, 0
        asked = asked or SharedExpert(expert="zero")
        if asked.expert == "none":
            if holds.needed:
                self.findings.problem(
                    f"a `{family.name}` model cannot be without a shared expert",
                    self.recipe.at("moe", "shared"),
                    "write `shared: zero` for one that adds nothing",
                )
            return None, 0
        if asked.expert == "zero":
            return asked, width if holds.multiple or holds.single else min(width, SMALL)
        routed = {expert.residual_scale for expert in self.moe.experts} or {1.0}
        together = abs(asked.residual_scale) + max(map(abs, routed))
        if together > 1.5:
            self.findings.warn(
                f"the shared expert and the routed ones add up to about {together:.3g} times what a"
                " dense layer says; `residual_scale` of both sets their parts",
                self.recipe.at("moe", "shared"),
            )
        own = width_of(asked.expert, self.found, self.feed)
        self.found[asked.expert].used += 1
        if holds.single and own > width:
            self.findings.problem(
                f"the shared expert is wider ({own}) than the routed ones ({width})",
                self.recipe.at("moe", "shared"),
                "take another, or another `target`",
            )
        if holds.single:
            return asked, width
        return asked, -(-own // width) * width if holds.multiple else own

    def layers(self, donor: Donor, family: Family) -> tuple[int, ...]:
        """Return the layers that are routed."""
        asked, every = self.moe.layers, tuple(range(donor.layers))
        if asked is None:
            return every
        where = self.recipe.at("moe", "layers")
        routed = tuple(layer for layer in every if covers(asked, layer))
        beyond = [last if last is not None else first for first, last in asked]
        if not asked or any(layer >= donor.layers for layer in beyond):
            self.findings.problem(
                f"the model has {donor.layers} layers (0-{donor.layers - 1}),"
                f" asked {format_layers(asked) or 'none'}",
                where,
                "layers are counted from 0",
            )
            return every
        if self.moe.outside == "identical":
            return routed
        dense = [layer for layer in every if layer not in routed]
        if dense and family.dense == "none":
            self.findings.problem(
                f"every layer of a `{family.name}` model is routed",
                where,
                "leave `layers` out, take a family with dense layers, such as `qwen3_moe` or"
                " `glm4_moe`, or write `outside: identical` for layers whose experts are all one",
            )
        elif family.dense == "first" and dense != list(range(len(dense))):
            self.findings.problem(
                f"only the first layers of a `{family.name}` model can be dense",
                where,
                f"write `layers: {len(dense)}-`",
            )
        return routed

"""From what a recipe says of carving its base, and headers, to the routed model that results."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.moe.assembly import Assembly
from mergekit_lite.moe.carve._layer import width_of
from mergekit_lite.moe.carve.unit import unit_weights
from mergekit_lite.moe.choose import choose
from mergekit_lite.moe.families import Family, Sizes
from mergekit_lite.moe.settle import SMALL, Settler
from mergekit_lite.moe.texts import check_file
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import BASE, Carve, MoeExpert, Recipe, SharedExpert


def settle_carve(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Assembly | None:
    """Return the routed model that a base is carved into; None with problems noted."""
    moe = recipe.moe
    if moe is None or moe.carve is None or found[BASE].settled:
        return None
    return _CarveSettler(recipe, moe, found, findings).carved(moe.carve)


class _CarveSettler(Settler):
    def carved(self, carve: Carve) -> Assembly | None:
        before = len(self.findings.problems)
        donor = self.donor()
        family = choose(self.recipe, donor, self.findings) if donor else None
        if donor is None or family is None:
            return None
        self._check(carve, donor.width, family)
        width = width_of(donor.width, carve.experts)
        shared, shared_width = self._shared_slices(carve, family, width)
        count = max(carve.experts - carve.shared, 1)
        layers = self.layers(donor, family)
        sizes = Sizes(count, carve.experts_per_token, width, shared_width, layers, donor.layers)
        if len(self.findings.problems) > before:
            return None
        found = Assembly(
            family=family,
            donor=donor,
            sizes=sizes,
            experts=(MoeExpert(expert=BASE, where=self.recipe.at("moe", "carve")),) * count,
            shared=shared,
            gate=carve.router,
            params={},
            roots={layer: self.feed.roots[layer] for layer in layers},
            for_training=self.moe.for_training,
            carve=carve,
            settings=unit_weights(family, donor, sizes, carve.slice_scale)[1],
        )
        self.warn_of_loaders(found)
        return found

    def _check(self, carve: Carve, width: int, family: Family) -> None:
        routed = carve.experts - carve.shared
        exact = carve.router == "exact"
        if exact and family.name != "routed":
            self._problem(
                "router",
                f"the exact router is not linear, and a `{family.name}` model has no place for it",
                "write `target: routed` for a model with code of its own, or `router: ridge`",
            )
        if family.name == "routed" and not exact:
            self.findings.problem(
                f"`{carve.router}` routers fit families of stock loaders, which need no code",
                self.recipe.at("moe", "target"),
                "leave `target` out, or write `router: exact`",
            )
        if carve.experts > width:
            self._problem(
                "experts",
                f"layers of {width} neurons cannot be cut into {carve.experts} slices",
                f"write at most {width}",
            )
        if routed < 1:
            self._problem(
                "shared",
                f"{carve.shared} of {carve.experts} slices are shared, which leaves none to choose",
                f"write at most {carve.experts - 1}",
            )
        elif carve.experts_per_token > routed:
            self._problem(
                "experts_per_token",
                f"tokens cannot pass {carve.experts_per_token} of {routed} slices"
                + (f"; {carve.shared} of {carve.experts} are shared" if carve.shared else ""),
                f"write at most {routed}",
            )
        if carve.router == "zeros" and carve.experts_per_token != routed:
            self._problem(
                "router",
                f"routers of zeros leave it to chance which {carve.experts_per_token} of {routed}"
                " slices a token passes",
                f"write `experts_per_token: {routed}`, or take another `router`",
            )
        if carve.router == "random" and carve.experts_per_token < routed:
            self.findings.warn(
                "`random` routers send tokens to any slice; it is what others are compared with",
                self.recipe.at("moe", "carve", "router"),
            )
        if family.shared is not None and family.shared.single and carve.shared > 1:
            self._problem(
                "shared",
                f"the shared expert of a `{family.name}` model is as wide as a routed one",
                "write `shared: 1` or `shared: 0`",
            )
        if carve.data is not None:
            where = self.recipe.at("moe", "carve", "data")
            check_file(self.recipe, carve.data, "for the carve", self.findings, where)

    def _problem(self, key: str, what: str, hint: str) -> None:
        self.findings.problem(what, self.recipe.at("moe", "carve", key), hint)

    def _shared_slices(
        self, carve: Carve, family: Family, width: int
    ) -> tuple[SharedExpert | None, int]:
        holds = family.shared
        if carve.shared:
            if holds is None:  # `choose` has noted it
                return None, 0
            return SharedExpert(expert=BASE), carve.shared * width
        if holds is None or not holds.needed:
            return None, 0
        return SharedExpert(expert="zero"), width if holds.multiple else min(width, SMALL)

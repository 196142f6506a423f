"""Whether models can lend experts to a routed base, from headers and configs alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.moe.assembly import FeedForward
from mergekit_lite.moe.grow.stored import Module, modules_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.recipe.schema import Addition, Recipe


class DonorCheck:
    """Notes what keeps models from lending experts to a base.

    Args:
        recipe: with `moe.grow`.
        base: a routed model.
        modules: its routed modules.
        findings: where problems are noted.
    """

    def __init__(
        self, recipe: Recipe, base: View, modules: Mapping[str, Module], findings: Findings
    ) -> None:
        self.recipe, self.base, self.modules = recipe, base, modules
        self.findings = findings

    def routed(self, view: View) -> dict[str, Module]:
        """Return the routed modules of a model by the base's; nothing of a dense one."""
        own = modules_of(view.tensors, view.model.config)
        if not own:
            return {}
        where = self.recipe.at("experts", view.name)
        alike = {}
        for root, module in self.modules.items():
            other = own.get(root)
            if other is None:
                self.findings.problem_with(
                    f"`{root}`",
                    f"expert `{view.name}` is a routed model of other layers or another family",
                    where,
                    "only routed models of one family can lend each other experts",
                )
            elif self._fits(view, module, other):
                alike[root] = other
        return alike

    def _fits(self, view: View, module: Module, other: Module) -> bool:
        """Return whether every expert of another module is as those of the base."""
        wanted = {
            place: (other.experts, *self.base.tensors[name].shape[1:])
            if module.stacked
            else self.base.tensors[name].shape
            for place, name in module.names(0).items()
        }
        for number in range(1 if module.stacked else other.experts):
            names = other.names(number)
            for place, shape in wanted.items():
                theirs = view.tensors.get(names.get(place, ""))
                if theirs is None or theirs.shape != shape or module.form != other.form:
                    has = "none" if theirs is None else shape_text(theirs.shape)
                    stored = names.get(place, f"{other.root}, {place[0]} of expert {number}")
                    self.findings.problem_with(
                        f"`{stored}` {has} (wanted {shape_text(shape)})",
                        f"experts of `{view.name}` are not as those of the base",
                        self.recipe.at("experts", view.name),
                        "only routed models of one family and size can lend each other experts",
                    )
                    return False
        return True

    def numbers(self, one: Addition, modules: Mapping[str, Module]) -> None:
        """Note numbers of experts that there are not, or none."""
        count = min(own.experts for own in modules.values())
        if not one.take:
            self.findings.problem(
                f"`{one.expert}` is a routed model of {count} experts, and nothing says which of"
                " them are added",
                one.where,
                f"write `{{expert: {one.expert}, take: [{count - 1}]}}`",
            )
        for number in one.take:
            if number >= count:
                self.findings.problem(
                    f"`{one.expert}` has {count} experts (0-{count - 1}), asked {number}",
                    one.where,
                    "experts are counted from 0",
                )

    def dense(self, view: View, one: Addition) -> FeedForward | None:
        """Return the feed-forward layers of a dense model that become experts."""
        before = len(self.findings.all_problems())
        if view.model.adapter is not None:
            self.findings.problem(
                f"expert `{one.expert}` is an adapter, which has no experts to lend",
                one.where,
                "merge it in a stage and name `@STAGE` as the expert's model",
            )
            return None
        if one.take or one.router == "own":
            self.findings.problem(
                f"`{one.expert}` is no routed model, so it has no numbered experts and no router",
                one.where,
                "leave `take` and `router` out",
            )
        feed = FeedForward.of(view.tensors)
        for module in self.modules.values():
            self._check_layer(view, module, feed.names.get(module.layer))
        mine, theirs = (configs.value(v.model.config, "hidden_act") for v in (view, self.base))
        if None not in (mine, theirs) and {mine, theirs} - {"silu", "swish"} and mine != theirs:
            self.findings.problem(
                f"expert `{view.name}` has the activation `{mine}`, the base `{theirs}`", one.where
            )
        return feed if len(self.findings.all_problems()) == before else None

    def _check_layer(self, view: View, module: Module, names: Mapping[str, str] | None) -> None:
        where = self.recipe.at("experts", view.name)
        plain = not module.form.transposed and not module.form.alternating
        if not plain or any(leaf == "bias" for _, _, leaf in module.tensors):
            self.findings.problem_with(
                f"`{module.root}`",
                "experts of the base have biases or are stored by turns: no dense layer fits",
                where,
                "give routed models of the base's family",
            )
        elif names is None:
            self.findings.problem_with(
                f"layer {module.layer}",
                f"expert `{view.name}` has no gated feed-forward layer where the base is routed",
                where,
                "take models that were tuned from one",
            )
        else:
            self._check_sizes(view, module, names)

    def _check_sizes(self, view: View, module: Module, names: Mapping[str, str]) -> None:
        hidden, width = expert_size(module, self.base.tensors)
        for part, name in names.items():
            shape = view.tensors[name].shape
            own = shape if part == "down" else shape[::-1]
            if own[0] != hidden or own[1] > width:
                self.findings.problem_with(
                    f"`{name}` {shape_text(shape)}",
                    f"feed-forward layers of `{view.name}` do not fit experts of width {width} in a"
                    f" model of width {hidden}",
                    self.recipe.at("experts", view.name),
                    "narrower ones are padded; wider ones do not fit",
                )

    def silence(self, added_silent: Sequence[Addition]) -> None:
        """Note experts that are to be silent in a family that cannot keep tokens from them."""
        mute = [own.root for own in self.modules.values() if not own.bias]
        for one in added_silent if mute else ():
            self.findings.problem(
                f"nothing keeps tokens from `{one.expert}` until it is trained: routers of this"
                " family have no bias of experts",
                one.where,
                "lend experts of a routed model, whose routers know them, or assemble anew with a"
                " gate from texts",
            )

    def shared(
        self, view: View, modules: Mapping[str, Module], taken: set[int | None]
    ) -> Iterator[tuple[str, str]]:
        """Yield (base's name, own name) of all that a routed model must have as the base has it.

        That is every weight but routers and experts, and the experts that it has in common with
        the base: those that are not taken. The latter are compared where they are stored alone.
        """
        inside = {name for own in self.modules.values() for name in own.tensors.values()}
        inside |= {name for own in self.modules.values() for name in own.routers}
        names = [name for name in self.base.tensors if name not in inside]
        pairs = [(name, name) for name in names]
        for root, other in modules.items():
            module = self.modules[root]
            for number in range(min(module.experts, other.experts)):
                if number not in taken and not module.stacked:
                    theirs = other.names(number)
                    pairs += [(name, theirs[p]) for p, name in module.names(number).items()]
        if self._made(view, [own for _, own in pairs]):
            return
        for name, own in pairs:
            mine, info = self.base.tensors[name], view.tensors.get(own)
            if info is None or (info.shape, info.dtype) != (mine.shape, mine.dtype):
                has = "none" if info is None else f"{info.dtype} {shape_text(info.shape)}"
                self.findings.problem_with(
                    f"`{own}` {has} (base {mine.dtype} {shape_text(mine.shape)})",
                    f"expert `{view.name}` has other weights beside its experts than the base",
                    self.recipe.at("experts", view.name),
                    "experts work with what they were trained beside; `rest: base` takes the"
                    " base's all the same",
                )
            else:
                yield name, own

    def _made(self, view: View, names: Sequence[str]) -> bool:
        """Note weights that are not on a disk as they are used, and cannot be compared there."""
        made = [
            side.name
            for side, own in ((self.base, self.base.tensors), (view, names))
            if side.model.stage or any(side.tensors[n].is_made for n in own if n in side.tensors)
        ]
        if made:
            self.findings.problem(
                f"the weights of `{view.name}` beside its experts cannot be compared with the"
                f" base's: those of `{made[0]}` are computed on the way",
                self.recipe.at("experts", view.name),
                "run the stage first and name its output, or write `rest: base`",
            )
        return bool(made)


def expert_size(module: Module, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Return how wide the residual stream and one expert are."""
    names = module.names(0)
    shape = tensors[names["down_proj", "weight"]].shape[-2:]
    return shape[0], shape[1]

"""Merged experts: means in one order of neurons, and everything else as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from mergekit_lite.export.verify import verify
from tests.moe.dense import config, logits, tensor
from tests.moe.routed import FAMILIES, make

Routed = Callable[[str], Path]
GROUPS = [[1, 4, 6], [7, 2]]
"""Of eight experts, five are left: 0, 1 (with 4 and 6), 3, 5 and 7 (with 2)."""
LEADS = (0, 1, 3, 5, 7)


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Routed:
    """Returns a tiny routed model of a family, made once. Read only."""
    root = tmp_path_factory.mktemp("routed")

    def get(family: str) -> Path:
        if not (root / family).exists():
            make(family, root / family)
        return root / family

    return get


def listed(base: Path, groups: Any = GROUPS, **merge: Any) -> dict[str, Any]:
    return {"base": str(base), "moe": {"merge": {"method": "listed", "groups": groups, **merge}}}


def problems(recipe: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        api.plan(recipe)
    return "\n".join(f"{p.where}: {p.what} [{p.hint}]" for p in caught.value.problems)


def rearranged(base: Path, folder: Path, copies: dict[int, int], **own: Any) -> Path:
    """Write a model in which some experts are others with their neurons in another order."""
    folder.mkdir()
    tensors = load_file(base / "model.safetensors")
    for layer in range(3):
        for copy, of in copies.items():
            start = f"model.layers.{layer}.mlp.experts."
            width = tensors[f"{start}{of}.down_proj.weight"].shape[1]
            generator = torch.Generator().manual_seed(copy)
            order = torch.randperm(width, generator=generator)
            for part in ("gate", "up", "down"):
                whole = tensors[f"{start}{of}.{part}_proj.weight"]
                cut = whole[:, order] if part == "down" else whole[order]
                tensors[f"{start}{copy}.{part}_proj.weight"] = cut.contiguous()
            tensors[f"model.layers.{layer}.mlp.gate.weight"][copy] = tensors[
                f"model.layers.{layer}.mlp.gate.weight"
            ][of]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config(base), **own}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_those_of_groups_and_the_others_the_same_bytes(
    routed: Routed, tmp_path: Path, family: str
) -> None:
    base, out = routed(family), tmp_path / "merged"
    recipe = listed(base, align="none")
    api.run(recipe, out)
    plan = api.plan(recipe)
    said = config(out)
    assert said["num_experts"] == said["num_local_experts"] == 5
    assert said["num_experts_per_tok"] == 2
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    count = 0
    for job in plan.jobs:
        found = after[job.name]
        start, _, rest = job.name.partition(".experts.")
        number = rest.partition(".")[0]
        if number.isdigit():
            new = int(number)
            of = {LEADS[new]} | {e for g in GROUPS if g[0] == LEADS[new] for e in g}
            parts = [before[f"{start}.experts.{e}{rest[len(number) :]}"] for e in sorted(of)]
            assert (job.kind == "copy") == (len(of) == 1)
            torch.testing.assert_close(found, torch.stack(parts).mean(0), rtol=1e-6, atol=1e-7)
            count += 1
        elif "linear.weight" in job.name and found.dim() == 3:
            whole = before[job.name]
            wanted = torch.stack(
                [whole[0], whole[[1, 4, 6]].mean(0), whole[3], whole[5], whole[[2, 7]].mean(0)]
            )
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
            assert torch.equal(found[[0, 2, 3]], whole[[0, 3, 5]])
            count += 1
        elif "gate.weight" in job.name or "router" in job.name or "correction" in job.name:
            assert torch.equal(found, before[job.name][list(LEADS)])
        else:
            assert torch.equal(found, before[job.name])
    assert count == {"glm4_moe": 30, "granitemoe": 6}.get(family, 45)
    logits(out)  # loads without missing or further weights
    assert not verify(out)


def test_duplicates_merge_to_themselves_and_permuted_ones_align_back(
    routed: Routed, tmp_path: Path
) -> None:
    """V11: the cost of aligning is 0, and the merged model says what the whole one said."""
    copies = {4: 1, 6: 1, 2: 7}
    base = rearranged(routed("qwen3_moe"), tmp_path / "base", copies)
    out = tmp_path / "merged"
    api.run(listed(base), out)
    for layer in range(3):
        for new, old in enumerate(LEADS):
            for part in ("gate", "up", "down"):
                name = f"model.layers.{layer}.mlp.experts.{{}}.{part}_proj.weight"
                torch.testing.assert_close(
                    tensor(out, name.format(new)), tensor(base, name.format(old)),
                    rtol=1e-6, atol=0,
                )  # fmt: skip
    api.run(listed(base, align="none"), tmp_path / "none")
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    apart = tensor(tmp_path / "none", name) - tensor(base, name)
    assert float(apart.abs().max()) > 0.1


def test_stacked_experts_are_aligned_inside_their_tensors(routed: Routed, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    tensors = load_file(routed("granitemoe") / "model.safetensors")
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    for layer in range(3):
        start = f"model.layers.{layer}.block_sparse_moe."
        wide = tensors[f"{start}input_linear.weight"]
        wide[4] = wide[1][torch.cat([order, order + 48])]
        down = tensors[f"{start}output_linear.weight"]
        down[4] = down[1][:, order]
    tensors["model.layers.0.block_sparse_moe.output_linear.weight"][0, 0, 0] = -0.0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text(json.dumps(config(routed("granitemoe"))))
    api.run(listed(base, [[1, 4]]), out)
    for layer in range(3):
        for part in ("input_linear", "output_linear"):
            name = f"model.layers.{layer}.block_sparse_moe.{part}.weight"
            kept = tensors[name][[0, 1, 2, 3, 5, 6, 7]]
            torch.testing.assert_close(tensor(out, name), kept, rtol=1e-6, atol=0)
            alone = [0, 2, 3, 4, 5, 6]
            assert torch.equal(
                tensor(out, name)[alone].view(torch.int32), kept[alone].view(torch.int32)
            )


def test_merging_nobody_is_the_model(routed: Routed, tmp_path: Path) -> None:
    for family in ("mixtral", "granitemoe"):
        api.run(listed(routed(family), [[3]]), tmp_path / family)
        assert torch.equal(logits(tmp_path / family), logits(routed(family)))


def test_the_manifest_says_who_became_whom(routed: Routed, tmp_path: Path) -> None:
    api.run(listed(routed("mixtral")), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "moe_manifest.json").read_text())
    module = manifest["modules"]["model.layers.1.block_sparse_moe"]
    assert [group["lead"] for group in module["groups"]] == list(LEADS)
    assert module["groups"][1]["experts"] == [1, 4, 6]
    assert sum(module["groups"][1]["weights"]) == pytest.approx(1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merged to 5" in card
    assert not (tmp_path / "out.gates").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bytes_do_not_depend_on_threads_or_interruption(routed: Routed, tmp_path: Path) -> None:
    recipe = listed(routed("mixtral"), router="frequency")
    recipe["moe"]["merge"]["stats"] = None
    del recipe["moe"]["merge"]["router"]
    api.run(recipe, tmp_path / "one", threads=1)
    api.run(recipe, tmp_path / "two", threads=2)
    for name in ("model.safetensors",):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_quantised_bases_are_merged_as_what_they_stand_for(routed: Routed, tmp_path: Path) -> None:
    base, plain = tmp_path / "fp8", tmp_path / "plain"
    for folder in (base, plain):
        folder.mkdir()
    coded = load_file(routed("qwen3_moe") / "model.safetensors")
    tensors = dict(coded)
    for name in [name for name in tensors if ".experts." in name]:
        coded[name] = tensors[name].to(torch.float8_e4m3fn)
        coded[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
        tensors[name] = coded[name].float() * 0.5
    said = config(routed("qwen3_moe"))
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    (plain / "config.json").write_text(json.dumps(said))
    save_file(coded, base / "model.safetensors", {"format": "pt"})
    said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (base / "config.json").write_text(json.dumps(said))
    for folder in (base, plain):
        api.run({**listed(folder), "output": {"dtype": "float32"}}, tmp_path / f"{folder.name}-out")
    assert "quantization_config" not in config(tmp_path / "fp8-out")
    for name, value in load_file(tmp_path / "plain-out" / "model.safetensors").items():
        assert torch.equal(tensor(tmp_path / "fp8-out", name), value)


def test_groups_of_routers_and_draft_layers_are_minded(routed: Routed, tmp_path: Path) -> None:
    base = make("glm4_moe", tmp_path / "base", n_group=2, topk_group=1)
    text = problems(listed(base, [[0, 4], [1, 5]]))
    assert "as many of each run" in text
    text = problems(listed(base, [[0, 1]]))
    assert "choose among 2 groups" in text
    plan = api.plan(listed(base, [[0, 1], [4, 5]]))
    assert plan.config["n_routed_experts"] == 6


def test_what_cannot_be_merged_is_refused(routed: Routed, dense: Any) -> None:
    base = routed("mixtral")
    assert "no routed experts" in problems(listed(dense("llama")))
    assert "expert 9" in problems(listed(base, [[1, 9]]))
    assert "named twice" in problems(listed(base, [[1, 2], [2, 3]]))
    assert "not every layer keeps" in problems(listed(base, {"0": [[1, 2]], "1": [[1, 2]]}))
    recipe: dict[str, Any] = {"base": str(base), "moe": {"merge": {"keep": 4, "method": "raem"}}}
    assert "did you mean `ream`" in problems(recipe)
    recipe["moe"]["merge"] = {"keep": 4}
    recipe["steps"] = ["linear"]
    text = problems(recipe)
    assert "`ream` needs `stats`" in text
    assert "rates,merging" in text
    assert "`moe.merge` and `steps` do not go together" in text
    assert "router: lse" in problems(listed(base, router="lse"))
    plan = api.plan(listed(base, align="none"))
    assert any("copies of one network" in text for text in plan.warnings)  # F19
    assert not api.plan(listed(base)).warnings

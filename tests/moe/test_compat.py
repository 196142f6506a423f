"""What loaders will do with a routed model, told from its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.cli.moe import command
from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.compat import Report, check_model, norm_findings
from mergekit_lite.moe.families import FAMILIES
from mergekit_lite.sources import resolve
from tests.moe.dense import config
from tests.moe.test_identity import copies

Dense = Callable[..., Path]
Routed = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def routed(dense: Dense, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Returns a routed model of a donor and a target. Read only."""
    root = tmp_path_factory.mktemp("routed")

    def get(donor: str, target: str) -> Path:
        out = root / target
        if not out.exists():
            api.run(copies(dense(donor), target), out)
        return out

    return get


def checked(folder: Path) -> Report:
    return check_model(resolve(str(folder), relative_to=folder))


def changed(folder: Path, out: Path, **entries: Any) -> Path:
    """Return a copy of a model with other entries in its config; None leaves one out."""
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    known = {**config(folder), **entries}
    text = json.dumps({key: value for key, value in known.items() if value is not None})
    (out / "config.json").write_text(text)
    return out


def verdicts(report: Report) -> tuple[str, ...]:
    return tuple(report.verdict(loader) for loader in ("transformers", "vllm", "llama.cpp"))


@pytest.mark.parametrize(
    ("donor", "target", "expected"),
    [
        ("llama", "mixtral", ("same", "same", "same")),
        ("qwen2", "qwen2_moe", ("same", "same", "differs")),
        ("qwen2", "glm4_moe", ("same", "same", "same")),
        ("qwen3", "qwen3_moe", ("same", "same", "same")),
        ("qwen3", "dots1", ("same", "fails", "fails")),
        ("olmo2", "flex_olmo", ("same", "same", "fails")),
        ("deepseek_v3", "deepseek_v3", ("same", "same", "same")),
        ("ernie4_5", "ernie4_5_moe", ("same", "same", "same")),
        ("hunyuan_v1_dense", "hunyuan_v1_moe", ("same", "same", "same")),
    ],
)
def test_what_is_assembled(
    routed: Callable[[str, str], Path], donor: str, target: str, expected: tuple[str, ...]
) -> None:
    """Shows V19 and F2."""
    assert verdicts(checked(routed(donor, target))) == expected


S, D, F, U = "same", "differs", "fails", "unknown"
NORMS = [
    # Verdicts of transformers, vLLM and llama.cpp where the config asks for weights that add up
    # to 1, and where it asks for others: two of four experts.
    ("mixtral", (S, S, S), (S, S, S)),
    ("qwen2_moe", (S, S, D), (S, S, S)),
    ("qwen3_moe", (S, S, S), (S, S, D)),
    ("olmoe", (S, D, D), (S, S, S)),
    ("deepseek", (S, S, D), (S, S, S)),
    ("deepseek_v2", (S, D, D), (S, S, S)),
    ("deepseek_v3", (S, S, S), (S, S, S)),
    ("glm4_moe", (S, S, S), (S, S, S)),
    ("dots1", (S, F, S), (S, F, S)),
    ("granitemoe", (S, S, S), (S, S, S)),
    ("granitemoeshared", (S, S, S), (S, S, S)),
    ("phimoe", (S, S, D), (S, S, D)),
    ("flex_olmo", (S, S, F), (S, S, F)),
    ("ernie4_5_moe", (S, S, S), (S, S, S)),
    ("hunyuan_v1_moe", (S, S, S), (S, S, S)),
    ("routed_llama", (S, U, F), (S, U, F)),
    ("no_such_family", (U, U, U), (U, U, U)),
]


@pytest.mark.parametrize(("family", "added_up", "as_they_are"), NORMS)
def test_who_weighs_experts_as_the_config_says(  # V19
    family: str, added_up: tuple[str, ...], as_they_are: tuple[str, ...]
) -> None:
    for asked, expected in ((True, added_up), (False, as_they_are)):
        plain = {"model_type": family, "norm_topk_prob": asked}
        found = {each.loader: each.verdict for each in norm_findings(plain, 4, 2)}
        assert tuple(found.values()) == expected, asked
        everyone = [each.verdict for each in norm_findings(plain, 4, 4)]
        if family == "phimoe":
            assert everyone == [S, F, D]
        else:
            assert everyone == [S if each == D else each for each in expected]


def test_the_table_is_whole() -> None:
    from mergekit_lite.moe.compat.loaders import FAMILIES as KNOWN

    own_code = ("routed", "lora_moe")
    tested = {family for family, _, _ in NORMS if not family.startswith(own_code)}
    assert {name for name in KNOWN if not name.startswith(own_code)} == tested - {"no_such_family"}


def test_every_family_is_in_the_table() -> None:
    from mergekit_lite.moe.compat.loaders import FAMILIES as KNOWN

    own = {f"routed_{donor}" for donor in FAMILIES["routed"].donors}
    assert FAMILIES.keys() - {"routed"} | own <= KNOWN.keys()


def test_code_of_its_own_is_for_transformers_alone(
    routed: Callable[[str, str], Path],
) -> None:
    report = checked(routed("llama", "routed"))
    assert verdicts(report) == ("same", "unknown", "fails")
    assert "trust_remote_code=True" in str(report.findings)


def test_a_loader_that_overrides_the_config(
    routed: Callable[[str, str], Path], tmp_path: Path
) -> None:  # F2
    plain = changed(routed("qwen3", "qwen3_moe"), tmp_path / "a", norm_topk_prob=False)
    report = checked(plain)
    assert verdicts(report) == ("same", "same", "differs")
    everyone = changed(routed("qwen2", "qwen2_moe"), tmp_path / "b", num_experts_per_tok=4)
    assert verdicts(checked(everyone)) == ("same", "same", "same")


@pytest.mark.parametrize(
    ("donor", "target", "entries", "loader", "words"),
    [
        ("qwen3", "qwen3_moe", {"num_experts": None}, "transformers", "else takes 128"),  # F5
        ("llama", "mixtral", {"num_experts": 8}, "vllm", "contradicts itself"),
        ("llama", "mixtral", {"num_experts_per_tok": 9}, "vllm", "cannot pass 9 of 4"),  # F20
        ("deepseek_v3", "deepseek_v3", {"n_group": 3}, "vllm", "3 equal groups"),  # F14
        ("deepseek_v3", "deepseek_v3", {"topk_method": None}, "vllm", "takes a softmax"),  # F24c
        (
            "deepseek_v3", "deepseek_v3", {"num_nextn_predict_layers": 1},
            "llama.cpp", "no weights of such layers",
        ),  # F24d
        ("hunyuan_v1_dense", "hunyuan_v1_moe", {"moe_topk": 2}, "llama.cpp", "is no list"),
        (
            "hunyuan_v1_dense", "hunyuan_v1_moe",
            {"moe_topk": [1] * 3, "num_experts_per_tok": 1}, "vllm", "weight of a single expert",
        ),
        ("qwen3", "dots1", {}, "llama.cpp", "there are 2 and 4"),
        ("llama", "mixtral", {"output_router_logits": True}, "transformers", "slows it"),  # F21
        (
            "llama", "mixtral", {"num_experts": 5, "num_local_experts": 5},
            "llama.cpp", "missing, or are too many",
        ),  # F16
    ],
)  # fmt: skip
def test_entries_that_loaders_trip_over(
    routed: Callable[[str, str], Path],
    tmp_path: Path,
    donor: str,
    target: str,
    entries: dict[str, Any],
    loader: str,
    words: str,
) -> None:
    report = checked(changed(routed(donor, target), tmp_path / "changed", **entries))
    told = [finding.what for finding in report.findings if finding.loader == loader]
    assert any(words in what for what in told), told


def test_names_of_memory_and_gates_of_zeros(
    routed: Callable[[str, str], Path], tmp_path: Path
) -> None:
    out = changed(routed("qwen2", "qwen2_moe"), tmp_path / "zeros", num_experts_per_tok=4)
    tensors = load_file(out / "model.safetensors")
    for name, value in tensors.items():
        if "shared_expert_gate" in name:
            value.zero_()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    assert checked(out).verdict("llama.cpp") == "fails"  # F24a
    out = changed(routed("llama", "mixtral"), tmp_path / "fused")
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.mlp.experts.down_proj"] = tensors.pop(
        "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    )
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    assert checked(out).verdict("vllm") == "fails"  # F4


def test_a_dense_model_is_none(dense: Dense) -> None:
    with pytest.raises(RecipeError, match="names no experts"):
        checked(dense("llama"))


def test_the_command(routed: Callable[[str, str], Path]) -> None:
    folder = str(routed("qwen2", "qwen2_moe"))
    shown = CliRunner().invoke(command, ["check-compat", folder])
    assert shown.exit_code == 0
    assert "4 experts, 2 for each token" in shown.output
    assert "target: glm4_moe" in shown.output
    asked = CliRunner().invoke(command, ["check-compat", folder, "--require", "llama.cpp"])
    assert asked.exit_code == 3
    plain = json.loads(CliRunner().invoke(command, ["check-compat", folder, "--json"]).output)
    assert plain["loaders"]["llama.cpp"]["verdict"] == "differs"


def test_planning_warns_of_it(dense: Dense) -> None:
    warnings = " ".join(api.plan(copies(dense("qwen2"), "qwen2_moe")).warnings)
    assert "llama.cpp does not make the weights" in warnings
    warnings = " ".join(api.plan(copies(dense("qwen3"), "dots1")).warnings)
    assert "llama.cpp takes `dots1` only with as many heads" in warnings
    assert not any("vllm" in text for text in api.plan(copies(dense("llama"), "mixtral")).warnings)


def test_a_number_of_experts_may_be_said_layer_by_layer(routed: Routed, tmp_path: Path) -> None:
    whole = routed("hunyuan_v1_dense", "hunyuan_v1_moe")
    assert config(whole)["moe_topk"] == [2, 2, 2]
    listed = changed(whole, tmp_path / "listed", num_experts_per_tok=None)
    assert checked(listed).per_token == 2

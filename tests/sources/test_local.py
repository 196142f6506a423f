from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from mergekit_lite.sources import resolve
from tests.checkpoints import read_weights, tiny_llama, write_json


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the model `base`, as the folder of a recipe."""
    tiny_llama(tmp_path / "base", shards=2)
    return tmp_path


@pytest.fixture
def lora(here: Path) -> Path:
    """A LoRA adapter of `base`, in the folder `lora`."""
    folder = here / "lora"
    folder.mkdir()
    write_json(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "org/base"},
    )
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{name}.lora_A.weight": torch.ones(1, 32),
        f"{name}.lora_B.weight": torch.ones(32, 1),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def test_a_folder_is_described_in_full_and_can_be_read(here: Path) -> None:
    model = resolve("base", relative_to=here)
    assert (model.reference, model.root, model.kind) == ("base", here / "base", "checkpoint")
    assert (model.revision, model.adapter, model.quantization) == ("", None, "")
    assert model.config is not None
    assert model.config["hidden_size"] == 32
    info = model.header.tensors["model.norm.weight"]
    reader = model.open(info.file)
    stored = bytearray(info.nbytes)
    reader.read_into(stored, info.start)
    reader.close()
    expected = read_weights(here / "base")["model.norm.weight"]
    assert torch.equal(torch.frombuffer(stored, dtype=torch.bfloat16), expected)


def test_all_spellings_of_a_folder_have_one_root(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "link").symlink_to(here / "base")
    (here / "recipes").mkdir()
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("MODELS", str(here))
    spellings = ["base", "./base", "base/", "../x/base", "link", str(here / "base"), "~/base",
                 "$MODELS/base", "${MODELS}/link/../base"]  # fmt: skip
    (here.parent / "x").symlink_to(here)
    roots = {resolve(spelling, relative_to=here).root for spelling in spellings}
    roots.add(resolve("../base", relative_to=here / "recipes").root)
    assert roots == {(here / "base").resolve()}
    (here.parent / "x").unlink()


def test_an_adapter_is_described_by_its_factors(here: Path, lora: Path) -> None:
    model = resolve("lora", relative_to=here)
    assert (model.kind, model.root, model.config) == ("adapter", lora, None)
    assert model.adapter is not None
    assert list(model.adapter.factors) == ["model.layers.0.self_attn.q_proj.weight"]
    assert model.header is model.adapter.header
    model.open("adapter_model.safetensors").close()
    assert resolve("lora", relative_to=here, kind="adapter").root == lora


@pytest.mark.usefixtures("lora")
def test_the_kind_that_was_asked_for_is_checked(here: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve("lora", relative_to=here, kind="checkpoint")
    assert "`lora` is a LoRA of org/base, not a model" in str(caught.value)
    assert "write `base: org/base` and, for the expert, `lora: lora`" in str(caught.value)
    with pytest.raises(RecipeError, match="`base` is a whole model"):
        resolve("base", relative_to=here, kind="adapter")


@pytest.mark.parametrize(
    ("reference", "error", "messages"),
    [
        ("bose", SourceError, ["there is no folder or file", "did you mean `base`?"]),
        ("./sub/dir/base", SourceError, ["there is no folder or file"]),
        ("org/model", SourceError, ["Hub repositories are not fetched", "hf download org/model"]),
        ("org/model@main", SourceError, ["Hub repositories are not fetched"]),
        ("$UNSET_VARIABLE/base", SourceError, ["environment variable that is not set"]),
        ("s3://bucket/model", RecipeError, ["by address are not supported"]),
        ("https://x.example/m.safetensors", RecipeError, ["by address are not supported"]),
        ("@inner", RecipeError, ["names a stage", "only the recipe"]),
        ("empty", SourceError, ["no safetensors weights"]),
        ("base/config.json", RecipeError, ["one file of a model", "give its folder"]),
        ("base/model.safetensors.index.json", RecipeError, ["one file of a model"]),
        ("files/m.gguf", RecipeError, ["GGUF"]),
        ("files/m.bin", RecipeError, ["pickle"]),
        ("files/m.txt", RecipeError, ["is not a model"]),
        ("files/absent.safetensors", SourceError, ["there is no folder"]),
    ],
)
def test_what_cannot_be_resolved_is_explained(
    here: Path, reference: str, error: type[MergekitLiteError], messages: list[str]
) -> None:
    (here / "empty").mkdir()
    (here / "files").mkdir()
    for name in ("m.gguf", "m.bin", "m.txt"):
        (here / "files" / name).touch()
    with pytest.raises(error) as caught:
        resolve(reference, relative_to=here)
    assert type(caught.value) is error
    for message in messages:
        assert message in str(caught.value)
    assert caught.value.exit_code == {SourceError: 5, RecipeError: 2}[error]


def test_a_local_folder_wins_over_the_look_of_a_repository(here: Path) -> None:
    tiny_llama(here / "org" / "model")
    assert resolve("org/model", relative_to=here).root == here / "org" / "model"


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_damaged_config_is_damage(here: Path, text: str) -> None:
    path = here / "base" / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"config\.json` does not hold"):
        resolve("base", relative_to=here)


def test_a_folder_without_config_is_a_model_all_the_same(here: Path) -> None:
    (here / "base" / "config.json").unlink()
    assert resolve("base", relative_to=here).config is None


def test_an_adapter_left_beside_a_model_does_not_change_what_it_is(here: Path) -> None:
    (here / "base" / "adapter_config.json").write_text("{}")
    model = resolve("base", relative_to=here)
    assert model.kind == "checkpoint"
    assert Path("adapter_config.json") not in model.companions


def test_companions_are_all_files_but_weights(here: Path) -> None:
    folder = here / "base"
    kept = ["merges.txt", "modeling_x.py", "LICENSE", "additional_chat_templates/tool.jinja",
            "1_Pooling/config.json", "docs/README.md"]  # fmt: skip
    refused = ["README.md", ".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json",
               "model.onnx", "tf_model.h5", "flax_model.msgpack", "original/consolidated.00.pth",
               "m.Q8_0.gguf", "recipe.lock.yaml", "merge_report.json", ".cache/x.json",
               "x.safetensors.partial", "checkpoint-500/trainer_state.json", "training_args.bin",
               ".git/config", "__pycache__/x.pyc"]  # fmt: skip
    for name in kept + refused:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    standard = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json",
                "tokenizer_config.json"]  # fmt: skip
    model = resolve("base", relative_to=here)
    assert model.companions == tuple(sorted(map(Path, kept + standard)))


def test_a_folder_that_cannot_be_listed_is_unreachable(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "base" / "templates").mkdir()
    whole = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("templates"):
            raise PermissionError(13, "Permission denied", path)
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"cannot read `base`.*Permission denied.*templates"):
        resolve("base", relative_to=here)


@pytest.mark.parametrize(
    ("config", "tensors", "expected"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {}, ("gptq", "not supported")),
        ({"text_config": {"quantization_config": {"quant_method": "AWQ"}}}, {},
         ("awq", "not supported")),
        ({"compression_config": {"format": "x"}}, {}, ("compressed-tensors x", "")),
        ({"quantization_config": {"bits": 4}}, {}, ("an unnamed method", "not supported")),
        ({"quantization_config": None}, {}, ("", "")),
        ({}, {"a.weight": torch.zeros(2).to(torch.float8_e4m3fn)},
         ("fp8", "`a.weight` is F8_E4M3")),
        ({}, {"a.qweight": torch.zeros(2, dtype=torch.int32)}, ("gptq or awq", "`a.qweight`")),
        ({}, {"a.weight": torch.zeros(2).char(), "a.SCB": torch.ones(1)},
         ("bitsandbytes", "`a.SCB`")),
        ({}, {"a.weight": torch.zeros(2).char()}, ("packed", "`a.weight` is I8")),
        ({}, {"a.weight": torch.zeros(1), "a.weight_scale_inv": torch.ones(1)},
         ("packed", "`a.weight_scale_inv` is a part of none")),
        ({}, {"a.weight": torch.zeros(1), "position_ids": torch.ones(1).long()}, ("", "")),
    ],
)  # fmt: skip
def test_quantised_checkpoints_are_recognised(
    tmp_path: Path,
    config: dict[str, object],
    tensors: dict[str, torch.Tensor],
    expected: tuple[str, str],
) -> None:
    write_json(tmp_path / "config.json", config)
    save_file(tensors or {"a.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    model = resolve(".", relative_to=tmp_path)
    name, fault = expected
    assert model.quantization == name
    assert fault in "; ".join(problem.what for problem in model.unreadable)
    assert bool(fault) == bool(model.unreadable)


def test_the_way_out_names_what_a_quantised_model_was_made_from(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"quantization_config": {"quant_method": "gptq"}})
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    for text in ("base_model: org/big-1.5", "base_model:\n- org/big-1.5\n- org/other"):
        (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{text}\n---\n# Small\n")
        (problem,) = resolve(".", relative_to=tmp_path).unreadable
        assert "16-bit checkpoint" in problem.hint
        assert "`org/big-1.5`" in problem.hint
    (tmp_path / "README.md").write_text("base_model: org/big\n")
    (problem,) = resolve(".", relative_to=tmp_path).unreadable
    assert "org/big" not in problem.hint


def test_a_quantised_model_that_stores_plain_weights_is_warned_of(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp8"}}
    write_json(tmp_path / "config.json", config)
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    for name in ("hf_quant_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    model = resolve(".", relative_to=tmp_path)
    assert model.header.warnings == ("config.json says fp8, but no tensor is quantised",)
    assert Path("hf_quant_config.json") not in model.companions
    assert Path("tokenizer.json") in model.companions

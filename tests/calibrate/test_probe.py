"""The probe of a routed model, on routers that are known to be right, wrong or empty."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from mergekit_lite.calibrate.probe import GATELESS, ROUTED, Probe, belonging, expert_names, probe
from mergekit_lite.calibrate.run import Settings, prepare
from mergekit_lite.calibrate.skeleton import build
from mergekit_lite.calibrate.texts import Text
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.cli.moe_probe import command
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.sources import resolve
from tests.calibrate.conftest import save_model
from tests.calibrate.test_stream import loaded
from tests.checkpoints import read_weights

TEXTS = [
    Text("w4 w6 w8 w10 w4 w6", "even", ""),
    Text("w5 w7 w9", "odd", ""),
    Text("w12 w14", "even", ""),
    Text("w11 w13 w15 w17", "odd", ""),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose attention says nothing and whose embeddings tell even words from odd ones."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    save_model(folder, "mixtral", num_local_experts=3, num_experts_per_tok=2)
    tensors = read_weights(folder)
    for name, value in tensors.items():
        if name.endswith("o_proj.weight"):
            value.zero_()
        if name.endswith((".w2.weight", "embed_tokens.weight")):
            value *= 0.05
    tensors["model.embed_tokens.weight"][0::2, 0] = 1.0
    tensors["model.embed_tokens.weight"][1::2, 1] = 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def with_routers(folder: Path, rows: Tensor, out: Path) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = read_weights(folder)
    for name in tensors:
        if name.endswith("gate.weight"):
            tensors[name] = rows.clone()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def probed(
    folder: Path, experts: tuple[str, ...] = ("even", "odd", "none"), batch: int = 40
) -> Probe:
    model = resolve(str(folder), relative_to=Path())
    prepared = prepare(model, TEXTS, [], Settings(batch=batch))
    belongs = belonging(prepared.samples.domains, experts, {})
    return probe(prepared, Weights(prepared.skeleton, {"model": model}), experts, belongs)


def rows_for(*directions: int) -> Tensor:
    rows = torch.zeros(len(directions), 32)
    for expert, direction in enumerate(directions):
        if direction >= 0:
            rows[expert, direction] = 4.0
    return rows


def test_routers_that_know_the_domains_are_right_everywhere(planted: Path, tmp_path: Path) -> None:
    found = probed(with_routers(planted, rows_for(0, 1, -1), tmp_path / "right"))

    assert found.right_in_all() == 1.0
    assert found.right_in_all(texts=True) == 1.0
    assert len(found.layers) == 3
    for layer in found.layers:
        assert layer.chosen == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
        assert sum(layer.load) == pytest.approx(1.0)
        assert layer.entropy < 0.05
        assert layer.router == f"model.layers.{layer.layer}.mlp.gate"
    assert math.isinf(found.layers[0].condition) or found.layers[0].condition > 1e6


def test_routers_with_rows_exchanged_are_wrong_everywhere(planted: Path, tmp_path: Path) -> None:
    found = probed(with_routers(planted, rows_for(1, 0, -1), tmp_path / "wrong"))

    assert found.right_in_all() == 0.0
    assert found.layers[0].chosen == ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def test_routers_of_zeros_tie_for_every_token(planted: Path, tmp_path: Path) -> None:
    """Shows F7 and F9: entropy and ties are told."""
    found = probed(with_routers(planted, rows_for(-1, -1, -1), tmp_path / "zeros"))

    assert [layer.ties for layer in found.layers] == [1.0] * 3
    assert found.layers[0].entropy == pytest.approx(math.log(3))
    # Two of three experts at a half are not the mean of all three.
    assert found.losses[ROUTED]["odd"] != found.losses[GATELESS]["odd"]


def loss_of(folder: Path, domain: str, **settings: int) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, tokens = 0.0, 0
    for text in TEXTS:
        if text.domain == domain:
            ids = tokenizer(text.text, return_tensors="pt").input_ids
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    return total / tokens


def test_losses_are_those_of_the_models_that_stand_for_each_way_of_routing(
    planted: Path, tmp_path: Path
) -> None:
    found = probed(with_routers(planted, rows_for(0, 1, 2), tmp_path / "routed"))

    everyone = with_routers(planted, rows_for(-1, -1, -1), tmp_path / "everyone")
    assert list(found.losses) == [ROUTED, GATELESS, "even alone", "odd alone", "none alone"]
    for domain in ("even", "odd"):
        losses = {way: loss[domain].nats_per_token for way, loss in found.losses.items()}
        assert losses[ROUTED] == pytest.approx(loss_of(tmp_path / "routed", domain), rel=1e-5)
        gateless = loss_of(everyone, domain, num_experts_per_tok=3)
        assert losses[GATELESS] == pytest.approx(gateless, rel=1e-5)
        for expert, name in enumerate(("even", "odd", "none")):
            # All rows alike and one expert a token: the same expert for all three.
            only = tmp_path / f"{name}-{domain}"
            same = {k: v for k, v in read_weights(planted).items()}
            for key in list(same):
                if ".experts." in key:
                    head, _, rest = key.partition(".experts.")
                    same[key] = same[f"{head}.experts.{expert}.{rest.partition('.')[2]}"].clone()
            with_routers(planted, rows_for(-1, -1, -1), only)
            for key in same:
                if key.endswith("gate.weight"):
                    same[key] = torch.zeros(3, 32)
            save_file(same, only / "model.safetensors", {"format": "pt"})
            assert losses[f"{name} alone"] == pytest.approx(loss_of(only, domain), rel=1e-5)
    text = TEXTS[1].text
    ratio = found.losses[ROUTED]["odd"].bits_per_byte / found.losses[ROUTED]["odd"].nats_per_token
    size = len(text) + len(TEXTS[3].text)
    assert ratio == pytest.approx(5 / size / math.log(2))


def test_batches_and_padding_change_nothing(planted: Path) -> None:
    together, apart = probed(planted), probed(planted, batch=1)

    for one, other in zip(together.layers, apart.layers, strict=True):
        assert one.chosen == other.chosen
        assert one.entropy == pytest.approx(other.entropy, rel=1e-5)
    for way, losses in together.losses.items():
        for domain, loss in losses.items():
            assert loss.bits_per_byte == pytest.approx(apart.losses[way][domain].bits_per_byte)


def test_a_domain_belongs_to_the_experts_of_its_name(planted: Path) -> None:
    assert belonging(["a", "b"], ["a", "c", "a"], {"b": "c"}) == {"a": (0, 2), "b": (1,)}
    assert belonging(["a", "x"], ["a"], {}) == {"a": (0,), "x": ()}
    with pytest.raises(RecipeError, match=r"no domain of the data \(x\) is called like an expert"):
        belonging(["x"], ["a"], {})
    with pytest.raises(RecipeError, match="`x=b` names no domain"):
        belonging(["x"], ["a"], {"x": "b"})


def test_a_dense_model_has_no_routers_to_probe(saved: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="no routers"):
        probed(saved["llama"])


def test_sigmoid_routers_are_read_as_such(saved: dict[str, Path]) -> None:
    found = probed(saved["glm4_moe"], ("even", "odd", "x", "y"))

    assert [layer.layer for layer in found.layers] == [1, 2]
    model = loaded(saved["glm4_moe"])
    seen: list[Tensor] = []
    model.model.layers[2].mlp.gate.register_forward_hook(lambda m, i, out: seen.append(out[0]))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved["glm4_moe"])
    with torch.inference_mode():
        for text in TEXTS:
            model(input_ids=tokenizer(text.text, return_tensors="pt").input_ids)
    scores = torch.cat(seen).double().sigmoid()
    p = scores / scores.sum(1, keepdim=True)
    entropy = float(-(p * p.log()).sum(1).mean())
    assert found.layers[1].entropy == pytest.approx(entropy, rel=1e-5)


def test_the_command_shows_layers_and_losses(planted: Path, tmp_path: Path) -> None:
    folder = with_routers(planted, rows_for(0, 1, -1), tmp_path / "routed")
    (folder / "moe_manifest.json").write_text(
        json.dumps({"experts": [{"expert": "even"}, {"expert": "odd"}, {"expert": "none"}]})
    )
    for name in ("even", "odd"):
        lines = [json.dumps({"text": t.text}) for t in TEXTS if t.domain == name]
        (tmp_path / f"{name}.heldout.jsonl").write_text("\n".join(lines))
    words = [
        str(folder),
        *(w for n in ("even", "odd") for w in ("--data", str(tmp_path / f"{n}.heldout.jsonl"))),
    ]

    shown = CliRunner().invoke(command, words, catch_exceptions=False).stdout.splitlines()

    assert shown[0].split() == [
        *("layer", "tokens", "right", "texts", "right", "entropy"),
        *("load", "of", "even", "/", "odd", "/", "none", "(%)", "near", "ties", "condition"),
    ]
    assert [line.split()[:3] for line in shown[1:4]] == [[str(n), "100.0", "%"] for n in range(3)]
    assert shown[4].split() == ["all", "100.0", "%", "100.0", "%"]
    assert [line.split()[0] for line in shown[6:]] == [
        "bits",
        "routed",
        "gateless",
        "even",
        "odd",
        "none",
    ]
    found = json.loads(
        CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False).stdout
    )
    assert (found["tokens_right"], found["texts_right"]) == (1.0, 1.0)
    assert found["layers"][2]["load"] == pytest.approx(found["layers"][2]["load"])
    assert len(found["losses"]) == 5

    few = CliRunner().invoke(
        command,
        [*words, "--no-baselines", "--experts", "odd,x,y", "--map", "even=x"],
        catch_exceptions=False,
    )
    # The names are exchanged, so nothing is where it belongs.
    assert few.stdout.splitlines()[4].split()[1] == "0.0"
    assert few.stdout.splitlines()[-1].split()[0] == "routed"


def test_experts_are_named_by_the_manifest_or_numbered(planted: Path, tmp_path: Path) -> None:
    skeleton = build(planted)
    assert expert_names(planted, skeleton) == ("0", "1", "2")
    manifest = tmp_path / "moe_manifest.json"
    manifest.write_text('{"pruned": {}}')  # which experts a base had has no names
    assert expert_names(tmp_path, skeleton) == ("0", "1", "2")
    manifest.write_text('{"experts": [{"expert": "a"}, {"expert": "b"}], "split": 2}')
    assert expert_names(tmp_path, skeleton) == ("a", "a", "b", "b")
    manifest.write_text('{"experts": [1]}')
    with pytest.raises(DataError, match="does not say what the experts are"):
        expert_names(tmp_path, skeleton)

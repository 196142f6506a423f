"""Each row of docs/mergekit-differences.md, shown on models that bring it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.tokenizer.chat import NAMED
from tests.checkpoints import perturbed, read_weights, tiny_llama, write_weights
from tests.peer.conftest import Job, Peer, Weights
from tests.peer.ties import tied

pytestmark = pytest.mark.peer
Ours = Callable[..., Weights]

HALF = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def two(method: str, *, parameters: str = "{}", weights: tuple[float, float] = (1, 1)) -> str:
    """Return a merge of two experts into their base."""
    return f"""
merge_method: {method}
base_model: base
models:
  - {{model: math, parameters: {{weight: {weights[0]}}}}}
  - {{model: code, parameters: {{weight: {weights[1]}}}}}
parameters: {parameters}
"""


def one(method: str, parameters: str = "{}") -> str:
    """Return a merge of one expert into its base."""
    return (
        f"merge_method: {method}\nbase_model: base\nmodels: [{{model: math}}]\n"
        f"parameters: {parameters}\n"
    )


RECIPES = {
    "dare": ("plain", one("dare_linear", "{weight: 1, density: 0.3}")),
    "della": ("plain", one("della_linear", "{weight: 1, density: 0.5, epsilon: 0.2}")),
    "trim": ("coarse", one("ties", "{weight: 1, density: 0.5}")),
    "fusion": ("plain", one("arcee_fusion")),
    "coarse fusion": ("coarse", one("arcee_fusion")),
    "ramplus": ("plain", one("ramplus_tl")),
    "sce": ("near", two("sce")),
    "stock": ("nearest", two("model_stock")),
    "slerp": ("zeroed", one("slerp", "{t: 0.5}")),
    "karcher": ("small", "merge_method: karcher\nmodels: [{model: base}, {model: math}]\n"),
    "cancelled": ("plain", two("ties", weights=(1, -1))),
    "nothing": (
        "plain",
        "merge_method: linear\nmodels:\n  - {model: math, parameters: {weight: 1}}\n"
        "  - {model: code, parameters: {weight: -1}}\n",
    ),
    "nan": ("broken", one("task_arithmetic", "{weight: 1}")),
    "extra": ("extra", one("task_arithmetic", "{weight: 1}")),
    "dense": ("plain", one("ties", "{weight: 1, density: 1.7}")),
    "misspelt": ("plain", one("ties", "{weight: 1, densty: 0.1}")),
    "beyond": ("plain", one("slerp", "{t: 1.5}")),
    "rescaled": ("plain", one("ties", "{weight: 1, density: 0.5, rescale: true}")),
    "wide": ("plain", one("task_arithmetic", "{weight: 0.5}") + "out_dtype: float32\n"),
    "padded": ("padded", one("linear", "{weight: 1}") + "tokenizer_source: base\n"),
    **{
        name: (
            "plain",
            one("linear", "{weight: 1}") + f"tokenizer_source: base\nchat_template: {name}\n",
        )
        for name in NAMED
    },
}
"""Name -> the models and the recipe, in fp32 but for `wide`, which computes in bf16."""

FILES = {
    "column": "merge_method: della_linear\nbase_model: base.safetensors\n"
    "models: [{model: math.safetensors}]\n"
    "parameters: {weight: 1, density: 0.5, epsilon: 0.2}\n",
    "gradient": "merge_method: task_arithmetic\nbase_model: base.safetensors\n"
    "models: [{model: math.safetensors}]\nparameters: {weight: [0, 1]}\n",
}


def edited(folder: Path, changes: Mapping[str, torch.Tensor]) -> None:
    """Put tensors into a checkpoint of one file."""
    write_weights(folder, {**read_weights(folder), **changes})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of each kind of models."""
    root = tmp_path_factory.mktemp("odd")
    scales = {"near": 1e-4, "nearest": 1e-6}
    kinds = ("plain", "near", "nearest", "zeroed", "small", "broken", "extra", "padded", "coarse")
    for kind in kinds:
        dtype = "bfloat16" if kind == "coarse" else "float32"
        base = tiny_llama(root / kind / "base", dtype=dtype)
        for seed, name in enumerate(("math", "code"), start=1):
            scale = scales.get(kind, 0.02) * (3 if kind == "near" and name == "code" else 1)
            perturbed(base, root / kind / name, seed=seed, scale=scale)
    weight = read_weights(root / "plain" / "math")[HALF]
    edited(root / "zeroed" / "math", {HALF: torch.zeros_like(weight)})
    edited(root / "broken" / "math", {HALF: weight.index_fill(0, torch.tensor([3]), torch.nan)})
    for name in ("base", "math"):
        edited(root / "small" / name, {NORM: torch.full((32,), 1e-7)})
        edited(root / "extra" / name, {"model.extra.weight": torch.ones(4, 4)})
        embedding = read_weights(root / "padded" / name)
        rows = {n: torch.cat([embedding[n], torch.zeros(8, 32)]) for n in embedding if "emb" in n}
        rows |= {n: torch.cat([embedding[n], torch.zeros(8, 32)]) for n in embedding if "head" in n}
        edited(root / "padded" / name, rows)
        config = root / "padded" / name / "config.json"
        config.write_text(config.read_text().replace('"vocab_size": 64', '"vocab_size": 72'))
    (root / "files").mkdir()
    for seed, name in enumerate(("base", "math")):
        generator = torch.Generator().manual_seed(seed)
        names = ("layers.0.w", "layers.1.w")
        tensors = {n: torch.randn(8, 1, generator=generator) for n in names}
        write_weights(root / "files" / name, tensors)
        file = root / "files" / name / "model.safetensors"
        file.rename(root / "files" / f"{name}.safetensors")
    return {kind: root / kind for kind in (*kinds, "files")}


@pytest.fixture(scope="module")
def theirs(
    places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, peer_python: str
) -> Peer:
    """Return what mergekit makes of all of it."""
    found = Peer(peer_python, tmp_path_factory.mktemp("differences"))
    jobs = [
        Job(name, f"{text}dtype: {'bfloat16' if name == 'wide' else 'float32'}\n", places[kind])
        for name, (kind, text) in RECIPES.items()
    ]
    for name in ("fusion", "coarse fusion", "ramplus"):
        kind, text = RECIPES[name]
        jobs.append(Job(f"{name}-in-bf16", f"{text}dtype: bfloat16\n", places[kind]))
    jobs += [Job(name, text, places["files"], "files") for name, text in FILES.items()]
    found.run(jobs)
    return found


@pytest.fixture
def mine(places: dict[str, Path], ours: Ours) -> Callable[[str], Weights]:
    """Return what mergekit-lite makes of one of the recipes."""

    def run(name: str, *changes: str) -> Weights:
        if name in FILES:
            return ours(FILES[name], places["files"], *changes)
        kind, text = RECIPES[name]
        return ours(text, places[kind], *(changes or ("dtype=float32",)))

    return run


Mine = Callable[..., Weights]
Places = dict[str, Path]


def deltas(folder: Path) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the base's tensor that is looked at, and the differences of both experts to it."""
    base = read_weights(folder / "base")[HALF]
    return base, [read_weights(folder / name)[HALF] - base for name in ("math", "code")]


@pytest.mark.parametrize(("name", "kept"), [("dare", 0.3), ("della", 0.5)])
def test_random_masks(name: str, kept: float, theirs: Peer, mine: Mine, places: Places) -> None:
    base, (delta, _) = deltas(places["plain"])
    found = [merged[HALF] - base for merged in (theirs.weights(name), mine(name))]
    masks = [change.abs() > 1e-9 for change in found]
    assert (masks[0] != masks[1]).any()
    for change, mask in zip(found, masks, strict=True):
        assert abs(float(mask.float().mean()) - kept) < 0.06
        factor = float(delta.abs().sum() / delta[mask].abs().sum())
        torch.testing.assert_close(change[mask], delta[mask] * factor, rtol=1e-3, atol=1e-6)


def test_ties_at_the_cut(
    theirs: Peer, mine: Mine, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = mine("trim"), theirs.weights("trim")
    monkeypatch.chdir(places["coarse"])
    free = tied(api.plan(yaml.safe_load(RECIPES["trim"][1])), places["coarse"])
    differ = {name: ours[name] != other[name] for name in free}
    assert sum(int(mask.sum()) for mask in differ.values()) > 0
    base = read_weights(places["coarse"] / "base")
    for name, mask in differ.items():
        assert not (mask & ~free[name]).any()
        kept = [int((merged[name] != base[name].float()).sum()) for merged in (ours, other)]
        assert kept[0] == kept[1]


def test_arcee_fusion_near_its_threshold(theirs: Peer, mine: Mine) -> None:
    ours, other = mine("fusion"), theirs.weights("fusion")
    far = sum(int(((ours[n] - other[n]).abs() > 1e-6).sum()) for n in ours)
    assert far <= 0.001 * sum(value.numel() for value in ours.values())


def fused_in_fp64(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return what the method makes of two tensors with nothing rounded."""
    x, y = first.double(), second.double()
    q, p = (rows.softmax(-1) + 1e-8 for rows in (x, y))
    scores = (y - x).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = scores.flatten().sort().values
    low, middle, high = (float(ordered[int(s * (len(ordered) - 1))]) for s in (0.25, 0.5, 0.75))
    return torch.where(scores >= middle + 1.5 * (high - low), y, x)


def test_arcee_fusion_in_bf16(theirs: Peer, mine: Mine, places: Places) -> None:
    base, math = (read_weights(places["coarse"] / name) for name in ("base", "math"))
    matrices = [name for name, value in base.items() if value.ndim > 1]
    exact = {name: fused_in_fp64(base[name], math[name]) for name in matrices}
    far = [
        sum(float((merged[name].double() - exact[name]).square().sum()) for name in matrices)
        for merged in (
            mine("coarse fusion", "dtype=bfloat16"),
            theirs.weights("coarse fusion-in-bf16"),
        )
    ]
    whole = sum(float((exact[name] - base[name].double()).square().sum()) for name in matrices)
    assert far[0] < 1e-12 * whole
    assert far[1] > 1e-3 * whole


@pytest.mark.parametrize("name", ["fusion", "ramplus"])
def test_the_dtype_asked_for_is_stored(name: str, theirs: Peer, mine: Mine) -> None:
    assert theirs.weights(f"{name}-in-bf16")[HALF].dtype == torch.float32
    assert mine(name, "dtype=bfloat16")[HALF].dtype == torch.bfloat16


def test_sce_of_small_changes(theirs: Peer, mine: Mine, places: Places) -> None:
    base, changes = deltas(places["near"])
    stacked = torch.stack(changes).double()
    energy = stacked.square().mean(dim=(1, 2))
    agrees = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    for merged, shares in (
        (theirs.weights("sce"), torch.full((2,), 0.5).double()),
        (mine("sce"), energy / energy.sum()),
    ):
        weights = shares[:, None, None] * agrees
        expected = (stacked * weights).sum(0) / weights.sum(0).clamp(min=1e-12)
        torch.testing.assert_close((merged[HALF] - base).double(), expected, rtol=1e-3, atol=1e-7)


def test_model_stock_of_small_changes(theirs: Peer, mine: Mine, places: Places) -> None:
    folder = places["nearest"]
    base, *others = (read_weights(folder / name)[NORM] for name in ("base", "math", "code"))
    first, second = (other.double() - base for other in others)
    cosine = first @ second / first.norm() / second.norm()
    expected = base + 2 * cosine / (1 + cosine) * (first + second) / 2
    far = [(merged[NORM] - expected).norm() for merged in (mine("stock"), theirs.weights("stock"))]
    assert far[0] < far[1]


def test_slerp_with_a_tensor_of_zeros(theirs: Peer, mine: Mine, places: Places) -> None:
    base, _ = deltas(places["zeroed"])
    torch.testing.assert_close(mine("slerp")[HALF], base * 0.5)
    torch.testing.assert_close(theirs.weights("slerp")[HALF], base * 0.5**0.5)


def test_karcher_of_small_tensors(theirs: Peer, mine: Mine) -> None:
    assert not theirs.weights("karcher")[NORM].any()
    torch.testing.assert_close(mine("karcher")[NORM], torch.full((32,), 1e-7))


def test_weights_that_cancel_where_signs_agree(theirs: Peer, mine: Mine, places: Places) -> None:
    base, (first, second) = deltas(places["plain"])
    agree = first.sign() != second.sign()
    torch.testing.assert_close(
        (theirs.weights("cancelled")[HALF] - base)[agree],
        (first - second)[agree],
        atol=1e-6,
        rtol=0,
    )
    assert torch.equal(mine("cancelled")[HALF][agree], base[agree])


def test_weights_that_sum_to_nothing(theirs: Peer, mine: Mine) -> None:
    assert not theirs.weights("nothing")[HALF].isfinite().any()
    with pytest.raises(RecipeError, match="sum to 0"):
        mine("nothing")


def test_values_that_are_not_finite(theirs: Peer, mine: Mine) -> None:
    assert theirs.weights("nan")[HALF].isnan().any()
    with pytest.raises(DataError, match="NaN or infinite"):
        mine("nan")


def test_tensors_that_no_list_names(theirs: Peer, mine: Mine) -> None:
    assert "model.extra.weight" not in theirs.weights("extra")
    assert "model.extra.weight" in mine("extra")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dense", "outside its range"),
        ("misspelt", "unknown parameter `densty`"),
        ("beyond", "outside its range"),
        ("rescaled", "`rescale: true` is not supported"),
    ],
)
def test_what_is_refused_here(name: str, says: str, theirs: Peer, mine: Mine) -> None:
    assert theirs.weights(name)
    with pytest.raises(RecipeError, match=says):
        mine(name)


def test_nothing_is_rounded_before_the_end(theirs: Peer, mine: Mine, places: Places) -> None:
    base, (delta, _) = deltas(places["plain"])
    exact = base.double() + 0.5 * delta
    ours, other = mine("wide", "dtype=bfloat16")[HALF], theirs.weights("wide")[HALF]
    assert ours.dtype == other.dtype == torch.float32
    assert (ours - exact).abs().max() < 1e-6 < (other - exact).abs().max()


def test_rows_of_padding_stay(theirs: Peer, mine: Mine) -> None:
    assert theirs.weights("padded")["model.embed_tokens.weight"].shape == (64, 32)
    assert mine("padded")["model.embed_tokens.weight"].shape == (72, 32)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_chat_templates_by_name(name: str, theirs: Peer, mine: Mine, tmp_path: Path) -> None:
    mine(name)
    assert theirs.errors[name] == "", theirs.errors[name]
    here, there = rendered(tmp_path / "out"), rendered(theirs.out(name))
    assert (here == there) == (name in ("chatml", "mistral"))
    assert "".join(here.split()) == "".join(there.split())


def rendered(folder: Path) -> str:
    """Return a conversation as the chat template of a model writes it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def test_della_of_a_column(theirs: Peer, mine: Mine) -> None:
    assert "Error" in theirs.errors["column"]
    assert mine("column")["layers.0.w"].isfinite().all()


def test_gradients_over_plain_files(theirs: Peer, mine: Mine, places: Places) -> None:
    files = [read_weights(places["files"] / f"{name}.safetensors") for name in ("base", "math")]
    assert torch.equal(theirs.weights("gradient")["layers.1.w"], files[0]["layers.1.w"])
    torch.testing.assert_close(mine("gradient")["layers.1.w"], files[1]["layers.1.w"])

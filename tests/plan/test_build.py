"""What each row reads, does and where the decision comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build, models
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import plain_frame
from mergekit_lite.plan.inputs import views
from mergekit_lite.plan.rows import Rows
from mergekit_lite.plan.types import Job, Plan, Read, Step
from tests.plan.hollow import llama, llama_config, recipe, write, write_adapter

EXPERTS = "experts: {math: {model: math}, code: {model: code}, chat: {model: chat}}\n"
TWO = "experts: {math: {model: math}, code: {model: code}}\n"
Q0 = "model.layers.0.self_attn.q_proj.weight"
Q1 = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def plan(root: Path, text: str) -> Plan:
    return build(recipe(root, f"base: base\n{text}"))


def rows(made: Plan) -> dict[str, Job]:
    return {job.name: job for job in made.jobs}


def sources(job: Job) -> list[str]:
    return [read.source for read in job.reads]


def steps(job: Job) -> list[tuple[str, str]]:
    return [(step.op, step.expert) for step in job.steps]


def test_a_delta_chain_reads_base_and_experts_in_recipe_order(root: Path) -> None:
    job = rows(plan(root, EXPERTS + "steps: [{ties: {density: 0.2, lambda: 0.5}}]"))[Q0]
    assert job.kind == "merge"
    assert job.base == Read("base", Q0, nbytes=2048)
    assert job.reads == tuple(Read(name, Q0, nbytes=2048) for name in ("math", "code", "chat"))
    assert steps(job) == [
        ("magnitude", "math"),
        ("magnitude", "code"),
        ("magnitude", "chat"),
        ("sign_consensus", ""),
        ("scale", ""),
    ]
    assert job.steps[0].params["density"] == 0.2
    assert job.steps[3].params["weights"] == [1.0, 1.0, 1.0]
    assert job.steps[4].params == {"lambda": 0.5}
    assert job.layer == 0


def test_parameters_of_a_step_hold_for_the_shape(root: Path) -> None:
    made = rows(plan(root, TWO + "steps: [{ties: {density: 0.2, density_1d: 0.7}}]"))
    assert made[Q0].steps[0].params["density"] == 0.2
    assert made[NORM].steps[0].params["density"] == 0.7


def test_weights_follow_depth_and_embedding_and_head_take_the_ends(root: Path) -> None:
    text = """
experts: {math: {model: math, weight: [0.2, 0.6]}, code: {model: code, weight: 3}}
steps: [task_arithmetic]
"""
    made = rows(plan(root, text))
    weights = {name: made[name].steps[-1].params["weights"] for name in (EMBEDDING, Q0, Q1, HEAD)}
    assert weights == {EMBEDDING: [0.2, 3], Q0: [0.2, 3], Q1: [0.6, 3], HEAD: [0.6, 3]}


def test_an_experts_own_steps_come_first_and_are_its_own(root: Path) -> None:
    text = """
experts: {math: {model: math, steps: [{dare: {density: 0.5}}]}, code: {model: code}}
steps: [{magnitude: {density: {math: 0.1, default: 0.3}}}, task_arithmetic]
"""
    job = rows(plan(root, text))[Q0]
    assert steps(job)[:3] == [("dare", "math"), ("magnitude", "math"), ("magnitude", "code")]
    assert [step.params["density"] for step in job.steps[:3]] == [0.5, 0.1, 0.3]


def test_an_op_that_sees_all_experts_may_have_a_value_for_each(root: Path) -> None:
    two = "experts: {math: {model: math}, code: {model: code}}\n"
    lambdas = "{math: 0.2, default: [0.4, 0.6]}"
    for op in ("consensus", "consensus_ties"):
        made = plan(root, f"{two}steps: [{{{op}: {{mask_lambda: {lambdas}}}}}]")
        for layer, code in ((0, 0.4), (1, 0.6)):
            job = rows(made)[f"model.layers.{layer}.mlp.up_proj.weight"]
            assert job.steps[-1].params["mask_lambda"] == {"math": 0.2, "code": code}
    with pytest.raises(RecipeError, match="`mask_lambda` of `consensus_ties` is 0, outside"):
        plan(root, f"{two}steps: [{{consensus_ties: {{mask_lambda: {{math: 0}}}}}}]")
    with pytest.raises(RecipeError, match="with 2 experts keeps nothing"):
        plan(root, f"{two}steps: [{{consensus_ties: {{at_least: 3}}}}]")


def test_the_last_rule_wins_and_sets_are_layered_on_top(root: Path) -> None:
    text = """
steps: [{magnitude: {density: 0.2}}, task_arithmetic]
rules:
  - {match: {layers: 0}, take: code}
  - {match: "*.q_proj.weight", set: {density: 0.4}}
  - {match: {layers: 0, role: attention}, steps: [{magnitude: {density: 0.9}}, task_arithmetic]}
  - {match: {layers: 1}, set: {magnitude.density: 0.6, weight: {math: 7}}}
  - {match: {role: norm}, take: base}
  - {match: lm_head.weight, drop: true}
"""
    made = rows(plan(root, TWO + text))
    assert made[Q0].steps[0].params["density"] == 0.4
    assert "recipe.yaml:8:5" in made[Q0].rule
    assert made[Q1].steps[0].params["density"] == 0.6
    assert made[Q1].steps[-1].params["weights"] == [7, 1.0]
    assert (made["model.layers.0.mlp.up_proj.weight"].kind, sources(made[NORM])) == (
        "copy",
        ["base"],
    )
    assert sources(made["model.layers.0.mlp.up_proj.weight"]) == ["code"]
    assert made["model.layers.0.input_layernorm.weight"].reads[0].source == "base"
    assert HEAD not in made


def test_a_map_of_weights_names_what_is_read(root: Path) -> None:
    text = EXPERTS + "steps: [{linear: {weights: {chat: 0.25, base: 0.75}}}]"
    job = rows(plan(root, text))[Q0]
    assert sources(job) == ["base", "chat"]
    assert job.base is None
    assert job.steps == (Step("linear", {"normalize": True, "weights": [0.75, 0.25]}),)


def test_slerp_of_one_expert_starts_at_the_base(root: Path) -> None:
    made = rows(plan(root, "experts: {math: {model: math}}\nsteps: [{slerp: {t: [0, 0.5]}}]"))
    assert sources(made[Q1]) == ["base", "math"]
    assert made[Q1].steps[0].params["t"] == 0.5
    # t 0 is the base itself, bit for bit.
    assert (made[Q0].kind, made[Q0].reads) == ("copy", (Read("base", Q0, nbytes=2048),))


def test_inputs_of_weight_zero_are_not_read(root: Path) -> None:
    text = """
experts: {math: {model: math, weight: [0, 1]}, code: {model: code, weight: [1, 0]}}
steps: [linear]
"""
    made = rows(plan(root, text))
    assert (made[Q0].kind, sources(made[Q0])) == ("copy", ["code"])
    assert (made[Q1].kind, sources(made[Q1])) == ("copy", ["math"])


def test_a_weight_of_zero_still_votes(root: Path) -> None:
    text = "experts: {math: {model: math, weight: 0}, code: {model: code}}\nsteps: [ties]"
    assert sources(rows(plan(root, text))[Q0]) == ["math", "code"]


@pytest.mark.parametrize(
    ("steps_text", "kind"),
    [
        ("[{passthrough: {source: math}}]", "copy"),
        ("[{passthrough: {source: math, scale: 0.5}}]", "merge"),
        ("[{take: {source: math}}]", "copy"),
        ("[{linear: {weights: {math: 0.3}}}]", "copy"),
        ("[{linear: {weights: {math: 0.3}, normalize: false}}]", "merge"),
        ("[{linear: {weights: {math: 0.3, code: 0.3}}}]", "merge"),
    ],
)
def test_rows_that_only_move_bytes_are_copies(root: Path, steps_text: str, kind: str) -> None:
    job = rows(plan(root, TWO + f"steps: {steps_text}"))[Q0]
    assert job.kind == kind
    assert sources(job)[0] == "math"
    assert bool(job.steps) == (kind == "merge")


def test_layer_swap_copies_outside_its_transition(tmp_path: Path) -> None:
    for name in ("base", "math", "code"):
        write(tmp_path / name, llama(8), llama_config(8))
    text = "steps: [{layer_swap: {from: code, into: math, bottom: 1, top: 1}}]"
    made = rows(plan(tmp_path, TWO + text))
    name = "model.layers.{}.self_attn.q_proj.weight"
    found = [(made[name.format(i)].kind, sources(made[name.format(i)])) for i in range(8)]
    taken, kept, both = ("copy", ["code"]), ("copy", ["math"]), ("merge", ["math", "code"])
    assert found == [taken, both, kept, kept, kept, kept, both, taken]
    assert sources(made[EMBEDDING]) == ["code"]


def test_another_dtype_is_cast_once_and_non_floats_are_left(root: Path) -> None:
    extra = {"model.rope.positions": ("I64", (64,))}
    for name in ("base", "math", "code"):
        write(root / name, llama() | extra)
    text = "output: {dtype: float32}\nsteps: [linear]\nrules: [{match: {role: norm}, take: math}]"
    made = plan(root, TWO + text)
    found = rows(made)
    assert (found["model.rope.positions"].kind, found["model.rope.positions"].dtype) == (
        "copy",
        "I64",
    )
    assert (found[Q0].dtype, found[NORM].dtype, found[NORM].kind) == ("F32", "F32", "merge")
    assert found[NORM].steps == (
        Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]}),
    )
    assert (made.dtype, made.config) == ("F32", {"torch_dtype": "float32"})


def test_an_expert_of_another_float_dtype_is_cast_when_taken(root: Path) -> None:
    write(root / "math", llama(dtype="F16"))
    job = rows(plan(root, TWO + "steps: [{take: {source: math}}]"))[Q0]
    assert (job.kind, job.dtype, job.reads[0].source) == ("merge", "BF16", "math")


def test_adapters_are_read_as_factors_and_leave_other_tensors_alone(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    experts = "experts: {tuned: {lora: lora, weight: 0.5}, math: {model: math}}\n"
    made = rows(plan(root, experts + "steps: [{magnitude: {density: 0.2}}, task_arithmetic]"))
    read = made[Q0].reads[0]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    assert read.lora is not None
    assert (read.lora.a, read.lora.b) == (f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight")
    assert (read.lora.scale, read.nbytes, read.zero) == (2.0, 2 * 4 * 32 * 4, False)
    # It counts as an expert whose delta is zero, and no transform needs to run on it.
    assert made[Q1].reads[0] == Read("tuned", "", zero=True)
    assert steps(made[Q1]) == [("magnitude", "math"), ("task_arithmetic", "")]
    assert made[Q1].steps[-1].params["weights"] == [0.5, 1.0]


def test_rows_whose_deltas_are_all_zero_are_copies_of_the_base(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    text = "experts: {tuned: {lora: lora}}\nsteps: [task_arithmetic]"
    made = rows(plan(root, text))
    assert made[Q0].kind == "merge"
    assert (made[Q1].kind, made[Q1].reads) == ("copy", (Read("base", Q1, nbytes=2048),))
    assert "every delta is zero" in made[Q1].rule
    cast = rows(plan(root, text + "\noutput: {dtype: float32}"))
    assert (cast[Q1].kind, cast[Q1].dtype, sources(cast[Q1])) == ("merge", "F32", ["base"])


def test_taking_an_adapter_forms_its_weight_from_the_base(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    made = rows(plan(root, "experts: {tuned: {lora: lora}}\nsteps: [{take: {source: tuned}}]"))
    assert (made[Q0].kind, made[Q0].base) == ("merge", Read("base", Q0, nbytes=2048))
    assert made[Q0].reads[0].lora is not None
    assert (made[Q1].kind, sources(made[Q1])) == ("copy", ["base"])


def test_allowed_missing_tensors_are_zero_deltas_or_the_bases_weight(root: Path) -> None:
    short = {name: fact for name, fact in llama().items() if name != Q0}
    write(root / "math", short)
    allowed = TWO + f"allow_missing: ['{Q0}']\n"
    delta = plan(root, allowed + "steps: [task_arithmetic]")
    assert rows(delta)[Q0].reads[0] == Read("math", "", zero=True)
    assert (delta.inputs["math"].missing, delta.inputs["math"].matched) == ((Q0,), 10)
    weight = rows(plan(root, allowed + "steps: [linear]"))[Q0]
    assert weight.reads == (Read("base", Q0, nbytes=2048), Read("code", Q0, nbytes=2048))


def test_an_expert_that_is_the_base_has_a_zero_delta(root: Path) -> None:
    text = "experts: {same: {model: ./math/../base}, math: {model: math}}\nsteps: [ties]"
    made = plan(root, text)
    assert rows(made)[Q0].reads == (
        Read("same", Q0, zero=True),
        Read("math", Q0, nbytes=2048),
    )
    assert any("expert `same` is the base: its delta is zero" in w for w in made.warnings)


def test_a_tied_expert_lends_its_embedding_as_head(root: Path) -> None:
    write(root / "math", llama(tied=True), llama_config(tied=True))
    made = plan(root, TWO + "steps: [task_arithmetic]")
    assert rows(made)[HEAD].reads[0] == Read("math", EMBEDDING, nbytes=64 * 32 * 2)
    assert any(
        "`model.embed_tokens.weight` stands for `lm_head.weight`" in w for w in made.warnings
    )


def test_unused_and_repeated_experts_are_mentioned(root: Path) -> None:
    text = "experts: {a: {model: math}, b: {model: ./math}}\nsteps: [{take: {source: a}}]"
    warnings = plan(root, text).warnings
    assert any("experts `a` and `b` are the same model" in warning for warning in warnings)
    assert any("expert `b` is not used by any tensor" in warning for warning in warnings)


def test_shards_follow_the_bases_files_in_order(tmp_path: Path) -> None:
    for name in ("base", "math", "code"):
        write(tmp_path / name, shards=2)
    made = plan(tmp_path, TWO + "output: {shard_size: 12kB}\nsteps: [linear]")
    assert len(made.shards) > 1
    assert [(job.shard, job.start) for job in made.jobs] == sorted(
        (job.shard, job.start) for job in made.jobs
    )
    for number, shard in enumerate(made.shards):
        last = [job for job in made.jobs if job.shard == number][-1]
        assert last.start + 2 * last.shape[0] * (last.shape[1] if last.shape[1:] else 1) == (
            shard.nbytes
        )


def test_a_plan_survives_json_and_its_content_digest_tells_it_apart(root: Path) -> None:
    made = plan(root, TWO + "steps: [{ties: {density: 0.2}}]")
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again.content_digest() == made.content_digest()
    other = plan(root, TWO + "steps: [{ties: {density: 0.3}}]")
    assert other.content_digest() != made.content_digest()
    assert made.content_digest() in made.shards[0].header


def test_headers_do_not_depend_on_where_the_inputs_lie(tmp_path: Path) -> None:
    headers = []
    for place in ("here", "there"):
        for name in ("base", "math", "code"):
            write(tmp_path / place / name)
        headers.append(plan(tmp_path / place, TWO + "steps: [linear]").shards[0].header)
    assert headers[0] == headers[1]


def test_chains_are_resolved_once_for_tensors_that_share_them(tmp_path: Path) -> None:
    for name in ("base", "math", "code"):
        write(tmp_path / name, llama(20), llama_config(20))
    loaded = recipe(tmp_path, "base: base\n" + TWO + "steps: [{ties: {density: [0.2, 0.5]}}]")
    found = views(loaded, models(loaded))
    maker = Rows(loaded, found, 20, Findings())
    made = [maker.row(target) for target in plain_frame(found["base"].tensors.values()).targets]
    assert len(made) == 83
    # One for each layer, one for the embedding, one for what follows the layers.
    assert maker.chains.resolved == 22


def test_planning_imports_nothing_that_it_can_do_without(root: Path) -> None:
    (root / "recipe.yaml").write_text("base: base\n" + TWO + "steps: [ties]\n")
    unwanted = ("torch", "transformers", "numba", "numpy", "mergekit_lite.recipe.compat.translate")
    code = (
        "import sys\n"
        "from mergekit_lite.recipe import load\n"
        "from mergekit_lite.plan.build import build\n"
        "from mergekit_lite.plan.estimate import estimate\n"
        f"estimate(build(load({str(root / 'recipe.yaml')!r})))\n"
        f"print([m for m in {unwanted} if m in sys.modules])\n"
    )
    checkout = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=checkout
    )
    assert done.stdout.strip() == "[]"


def test_the_json_is_that_of_the_dataclasses(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    made = plan(root, "experts: {tuned: {lora: lora}, math: {model: math}}\nsteps: [ties]")
    expected = json.dumps(asdict(made), sort_keys=True, separators=(",", ":"))
    assert made.to_json() == expected


def test_a_weight_that_no_step_counts_is_warned_of(root: Path) -> None:
    two = "experts: {math: {model: math, weight: 0.3}, code: {model: code}}\n"
    swap = "steps: [{layer_swap: {from: code, into: math, bottom: 1, top: 0}}]"
    (warning,) = plan(root, two + swap).warnings
    assert "the weight of expert `math` has no effect" in warning
    assert plan(root, two + "steps: [{linear: {}}]").warnings == ()
    (warning,) = plan(root, two + "steps: [{linear: {weights: {math: 1, code: 2}}}]").warnings
    assert "the weight of expert `math` has no effect" in warning

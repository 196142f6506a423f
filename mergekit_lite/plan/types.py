"""The plan: a flat, JSON-able table with one row for each tensor that will be written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from mergekit_lite.checkpoint import LoraFactors
from mergekit_lite.plan.row_kinds import Coding, Fusion, Part
from mergekit_lite.plan.row_maps import RowMap

GATE = "@gate"
"""What reads of the file of gates name as their source; it is made before the rows run."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Makes an input of rows of stored tensors, because its vocabulary is not the output's.

    Attributes:
        map: key into `Plan.row_maps`.
        parts: the stored tensors that the map speaks of, the input's own first.
        dtype: of the entries in memory.
    """

    map: str
    parts: tuple[Read, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of entries of a stored tensor: `count` of them from entry `first` on."""

    name: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Entries in blocks whose dimensions are exchanged, the matrix of one expert after the other.

    Attributes:
        shape: of a block as it is stored.
        axes: its dimensions in the order in which they are wanted.
        first: entry of the result at which the input begins.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    first: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """Puts the rows or columns of a matrix in an order that is made before the rows run.

    Attributes:
        name: of the tensor in the file of gates that holds, for each row (or column) of the result,
            the number of the stored one, or one that is not stored for zeros.
        stored: rows and columns of the matrix as it is stored.
    """

    name: str
    axis: Literal["rows", "columns"]
    stored: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Block:
    """A window onto a matrix; what of it lies beyond the matrix is zero.

    Attributes:
        read: how the matrix is read.
        stored: its rows and columns.
        first: row and column of the window's first entry.
        shape: rows and columns of the window.
        scale: factor of its entries.
        order: how the matrix is put in another order first; `stored` is its size then.
    """

    read: Read
    stored: tuple[int, int]
    first: tuple[int, int]
    shape: tuple[int, int]
    scale: float = 1.0
    order: Order | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """One input of a row: a whole stored tensor, or the factors of an adapter's delta.

    Attributes:
        source: key into `Plan.inputs`: `base` or an expert's name.
        name: the tensor's name in that source ("" for an adapter that does not touch it).
        lora: factors, when the source is an adapter.
        zero: the source leaves this tensor as in the base (delta identically zero).
        nbytes: bytes this input has on disk (of both factors for an adapter's delta).
        made: its entries are made tile by tile, from codes or by a stage, and are on no disk as
            they are read.
        held: bytes that stay in memory while its tiles are made.
        gather: how its rows are found, where they are not those of the stored tensor.
        pieces: the runs of stored entries that it is made of, where it is no stored tensor;
            `name` is then that of the first.
        turn: how the entries of the pieces are ordered anew, where their order is another.
        blocks, beside: windows onto matrices that it is made of, one below another or side by side.
    """

    source: str
    name: str
    lora: LoraFactors | None = None
    zero: bool = False
    nbytes: int = 0
    made: bool = False
    held: int = 0
    gather: Gather | None = None
    pieces: tuple[Piece, ...] = ()
    turn: Turn | None = None
    blocks: tuple[Block, ...] = ()
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One op with every parameter resolved to a plain value for this tensor.

    Attributes:
        op: name in the op registry.
        params: resolved parameters; a combine's hold `weights`: one number per read.
        expert: for transforms, the expert (a `Read.source`) it is applied to.
    """

    op: str
    params: Mapping[str, Any] = field(default_factory=dict)
    expert: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One output tensor: what is read, what is done to it and where it goes.

    Attributes:
        name, dtype, shape: of the output (safetensors dtype).
        shard: index into `Plan.shards`.
        start: byte offset of the tensor from the start of its shard file.
        kind: `copy` moves the bytes of `reads[0]` unchanged; `merge` computes.
        base: the base tensor, when the row needs it (all delta-space rows do).
        reads: the experts' inputs, in recipe order.
        steps: transforms (by expert), then one combine, then posts.
        layer: index of the tensor's layer, None outside the layers.
        rule: where the winning decision stands in the recipe (`recipe.yaml:12:5`), and why.
        fusion: of a row of an adapter, which factor it is; `steps` then work in a small space.
        coding: of a matrix that is written as codes, what is written in its place.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    start: int
    kind: Literal["copy", "merge"]
    reads: tuple[Read, ...]
    base: Read | None = None
    steps: tuple[Step, ...] = ()
    layer: int | None = None
    rule: str = ""
    fusion: Fusion | None = None
    coding: Coding | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors that it writes: itself, or those that it is quantised to."""
        if self.coding is not None:
            return self.coding.parts
        return (Part(self.name, self.dtype, self.shape, self.start),)


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its final name, the JSON header it begins with and its size."""

    file: str
    nbytes: int
    header: str


@dataclass(frozen=True)
class Input:
    """One resolved source of the plan.

    Attributes:
        reference: as the recipe writes it.
        root: resolved folder or file.
        kind: `checkpoint`, `adapter` or `patch`.
        revision: commit of a Hub repository, or empty; of a stage the digest of its plan.
        quantization: how quantised weights are read, such as `fp8, dequantised to BF16`.
        stage: name of the stage whose result it is; it has no files of its own.
        files: file name -> size in bytes.
        matched: base tensors that this input covers.
        missing: base tensors that it lacks (allowed by the recipe).
        extra: tensors that the base lacks.
    """

    reference: str
    root: str
    kind: Literal["checkpoint", "adapter", "patch"]
    revision: str = ""
    quantization: str = ""
    stage: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    matched: int = 0
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run will do, in full, decided from the recipe and the headers alone.

    Attributes:
        inputs: `base` and every expert by name.
        jobs: one row per output tensor, ordered by (shard, start).
        shards: output files.
        seed: the recipe's seed.
        layers: number of layers of the base.
        dtype: the output dtype that the config will name (safetensors name).
        warnings: things the user should know, each with its place.
        recipe: the resolved recipe as plain data (after extends, vars and --set).
        config: changes to make in the donor's config.json (key -> value).
        config_without: keys of that file that the output has no use for.
        compat: `none` or `mergekit`.
        folder: where relative references of the recipe start from.
        layer_map: of a recipe with slices, where each layer of the output comes from.
        row_maps: how inputs of another vocabulary are gathered, by `Gather.map`.
        tokenizer: how the output's tokenizer files are made, where they are not just the base's.
        untouched: question about the whole model -> (layer, entries) of the tensors that it is
            about and no row brings to it, as nobody changes them (`plan/questions.py`).
        adapter: `adapter_config.json` of an output that is an adapter; empty for a model.
        stages: the plans of all stages by name, those first that others use; of the whole only.
        written: stages that are written before they are used, and why.
        moe: of a routed model that is assembled, what it is made of and how its gates are made.
    """

    inputs: Mapping[str, Input]
    jobs: tuple[Job, ...]
    shards: tuple[Shard, ...]
    seed: int
    layers: int
    dtype: str
    warnings: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_without: tuple[str, ...] = ()
    compat: str = "none"
    folder: str = "."
    layer_map: tuple[Mapping[str, Any], ...] = ()
    row_maps: Mapping[str, RowMap] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    untouched: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Plan] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    moe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaves(self) -> dict[str, Input]:
        """Every input that is on a disk: those of stages are called `STAGE/NAME`."""
        found = {name: source for name, source in self.inputs.items() if not source.stage}
        for stage, plan in self.stages.items():
            found |= {f"{stage}/{name}": source for name, source in plan.leaves.items()}
        return found

    def to_json(self) -> str:
        """Return the plan as JSON text with stable key order."""
        return _json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Rebuild a plan from `to_json`'s text, as another machine would."""
        return cls._from_plain(json.loads(text))

    @classmethod
    def _from_plain(cls, raw: dict[str, Any]) -> Plan:

        def read(value: dict[str, Any] | None) -> Read | None:
            if value is None:
                return None
            lora, gather = value["lora"], value["gather"]
            if lora:
                lora = LoraFactors.from_plain(lora)
            if gather is not None:
                stored = tuple(r for r in map(read, gather["parts"]) if r)
                gather = Gather(gather["map"], stored, gather["dtype"])
            pieces = tuple(Piece(**piece) for piece in value["pieces"])
            turn = value["turn"]
            if turn is not None:
                turn = Turn(tuple(turn["shape"]), tuple(turn["axes"]), turn["first"])
            blocks = tuple(block(each) for each in value["blocks"])
            parts = {"lora": lora, "gather": gather, "pieces": pieces, "turn": turn}
            return Read(**{**value, **parts, "blocks": blocks})

        def block(value: dict[str, Any]) -> Block:
            sizes = {key: tuple(value[key]) for key in ("stored", "first", "shape")}
            order = value["order"]
            if order is not None:
                order = Order(order["name"], order["axis"], tuple(order["stored"]))
            whole = read(value["read"]) or Read("", "")
            return Block(whole, **sizes, scale=value["scale"], order=order)

        def job(value: dict[str, Any]) -> Job:
            coding = value.get("coding")
            return Job(
                **{
                    **value,
                    "shape": tuple(value["shape"]),
                    "base": read(value["base"]),
                    "reads": tuple(r for r in map(read, value["reads"]) if r),
                    "steps": tuple(Step(**step) for step in value["steps"]),
                    "fusion": value["fusion"] and Fusion.from_plain(value["fusion"]),
                    "coding": coding and Coding.from_plain(coding),
                }
            )

        def untouched(value: list[list[int]]) -> tuple[tuple[int, int], ...]:
            return tuple((layer, entries) for layer, entries in value)

        tuples = ("missing", "extra")
        inputs = {
            name: Input(**{**value, **{key: tuple(value[key]) for key in tuples}})
            for name, value in raw.pop("inputs").items()
        }
        return cls(
            inputs=inputs,
            jobs=tuple(job(value) for value in raw.pop("jobs")),
            shards=tuple(Shard(**value) for value in raw.pop("shards")),
            warnings=tuple(raw.pop("warnings")),
            stages={name: cls._from_plain(plan) for name, plan in raw.pop("stages").items()},
            layer_map=tuple(raw.pop("layer_map")),
            config_without=tuple(raw.pop("config_without")),
            row_maps={key: RowMap.from_plain(v) for key, v in raw.pop("row_maps").items()},
            untouched={key: untouched(value) for key, value in raw.pop("untouched").items()},
            **raw,
        )

    def content_digest(self) -> str:
        """Return the sha256 of what is computed, whatever folders the inputs lie in.

        It is what the output's headers carry, so it leaves those headers out, and with them all
        that differs from machine to machine: roots, references and places in the recipe.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = {
            "inputs": {
                name: (
                    source.kind,
                    sorted(source.files.items()),
                    *([source.quantization] if source.quantization else []),
                    *([source.revision] if source.stage else []),
                )
                for name, source in self.inputs.items()
            },
            "jobs": [replace(job, rule="") for job in self.jobs],
            "shards": [(shard.file, shard.nbytes) for shard in self.shards],
            "seed": self.seed,
            "layers": self.layers,
            "compat": self.compat,
            "row_maps": self.row_maps,
            "tokenizer": self.tokenizer,
            **({"untouched": self.untouched} if self.untouched else {}),
            **({"moe": self.moe} if self.moe else {}),
        }
        return hashlib.sha256(_json(content, _content).encode()).hexdigest()


def _mapping(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _content(value: Any) -> dict[str, Any]:
    found = _mapping(value)
    if found.get("coding", 0) is None:  # what quantises nothing has the digest that it ever had
        del found["coding"]
    return found


def _json(value: Any, mapping: Callable[[Any], dict[str, Any]] = _mapping) -> str:
    # `dataclasses.asdict` copies every value on the way, which takes longer than all the planning.
    return json.dumps(value, default=mapping, sort_keys=True, separators=(",", ":"))

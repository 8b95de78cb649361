"""One TOML file is a run: frozen dataclasses, one documented line per field, unknown keys are errors.

The documented lines are the `--help` too (`describe`), and the resolved copy in a run's directory (`dump`) replays it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.core import schema
from recipe.core.errors import UsageError
from recipe.core.schema import mapping, opt

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a LLaMA's decoder layer
SEEDS = 2**32 - 1  # numpy takes no larger seed


@dataclass(frozen=True)
class Base:
    """The pretrained model."""

    source: str = opt(
        "", "raw weights: a folder (Meta consolidated.*.pth, Hugging Face) or a .gguf file", hashed=False, kind="path"
    )
    path: str = opt(
        "", "converted weights: `convert` writes them here, every later stage reads them", hashed=False, kind="path"
    )
    dtype: str = opt("fp16", "how converted weights are stored", choices=("fp16", "fp32"))
    precision: str = opt(
        "int8", "how the frozen base is held in memory while training", choices=("int8", "nf4", "fp16", "fp32")
    )
    split: int = opt(
        1,
        "GPUs of this machine that share the base's layers, for a base that does not fit one; they take turns",
        hashed=False,
        low=1,
        high=64,
    )


@dataclass(frozen=True)
class Source:
    """One file or folder of raw conversations: a `[[corpus.source]]` table."""

    path: str = opt(
        "",
        "raw conversations: a JSON, JSON Lines, CSV or Parquet file, or a folder that `datasets` saved",
        hashed=False,
        kind="file",
    )
    format: str = opt("", "the format of its records; empty: recognized for each record")
    share: float = opt(1.0, "share of the source's conversations that is used, drawn by their ids", above=0, high=1)
    weight: float = opt(
        0.0,
        "relative share of the training tokens among the weighted sources, reached by repeating samples; 0: none",
        low=0,
        high=1e6,
    )
    fields: Mapping[str, str] = mapping("field names of your own, as { question = 'query', answer = 'response' }")
    roles: Mapping[str, str] = mapping("role names of your own, as { client = 'user' }")
    answers: str = opt(
        "first", "of several answers without a ranking: the first, or a conversation for each", choices=("first", "all")
    )
    html: bool = opt(False, "every turn of pure HTML was copied from a chat page, also where it has no sign of one")


@dataclass(frozen=True)
class Corpus:
    """The conversations."""

    source: tuple[Source, ...] = opt((), "the raw conversations, a table per file or folder")
    path: str = opt("", "the prepared corpus: train.jsonl, val.jsonl, report.md", hashed=False, kind="path")
    template: str = opt(
        "vicuna_v1.1",
        "chat template: vicuna_v1.1, vicuna_v0, alpaca, alpaca_short, llama-2, llama-3, chatml, zephyr, "
        "or the path of a TOML file with your own",
    )
    max_length: int = opt(
        2048, "longest sample in tokens; longer conversations are split between turns", low=1, high=1 << 20
    )
    val_fraction: float = opt(0.02, "share of the conversations used for validation", low=0, high=1)
    seed: int = opt(0, "seed of the validation split and of shares", low=0, high=SEEDS)
    identity_name: str = opt("", "the name the model should answer to; empty: no identity conversations")
    identity_organisation: str = opt("", "the organisation that the model names as its maker")
    identity_repeat: int = opt(
        1, "how often the identity conversations are repeated in the training samples", low=1, high=1000
    )
    html: bool = opt(True, "convert a chat page's HTML to Markdown")
    replace: tuple[str, ...] = opt((), "rules 'pattern => text': regular expressions, applied to every turn in order")
    script: str = opt(
        "keep",
        "Chinese script: t2s makes traditional simplified, s2t the reverse",
        choices=("keep", "t2s", "s2t"),
    )
    repair_roles: bool = opt(True, "join or drop turns so that roles alternate; false: drop such conversations")
    rounds: int = opt(0, "maximum question-answer pairs per conversation; 0: no limit", low=0, high=1_000_000)
    blocked_words: tuple[str, ...] = opt((), "drop conversations that contain one of these words")
    languages_keep: tuple[str, ...] = opt((), "ISO 639-1 codes of the only languages kept; empty: all")
    languages_skip: tuple[str, ...] = opt((), "ISO 639-1 codes of languages to drop")
    repeated_digits: int = opt(0, "drop conversations with a run of this many equal digits; 0: off", low=0, high=1000)
    decontaminate: tuple[str, ...] = opt(
        (),
        "files of evaluation prompts, one a line or in any known format; conversations that contain one are dropped",
        hashed=False,
        kind="path",
    )
    duplicates: str = opt(
        "exact",
        "repeated conversations to drop: none, those with equal text, or similar ones too",
        choices=("keep", "exact", "near"),
    )
    near_threshold: float = opt(0.8, "Jaccard threshold on word 3-grams for near-duplicates", above=0, high=1)
    over_long: str = opt(
        "drop",
        "a question-answer pair that exceeds max_length: drop it, or truncate its answer at a sentence",
        choices=("drop", "truncate"),
    )
    processes: int = opt(0, "worker processes; 0: one per core", hashed=False, low=0, high=1024)
    cluster: str = opt(
        "",
        "address of a Dask scheduler, as tcp://host:8786, whose workers prepare the corpus; empty: this machine's "
        "processes",
        hashed=False,
    )


@dataclass(frozen=True)
class Lora:
    """The LoRA adapter (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = opt(8, "rank r of the update", low=1, high=4096)
    alpha: int = opt(16, "the update is scaled by alpha / rank", low=1, high=1_000_000)
    dropout: float = opt(0.05, "dropout on the input of the adapter", low=0, high=0.95)
    target_modules: tuple[str, ...] = opt(
        ("q_proj", "v_proj"), "linear layers of the decoder that get an adapter", choices=LINEARS
    )
    start: str = opt(
        "",
        "an adapter to continue from on other data: the folder of a finished run, or of an adapter of peft or "
        "alpaca-lora; empty: a new one",
        hashed=False,
        kind="path",
    )


@dataclass(frozen=True)
class Train:
    """The optimization."""

    seed: int = opt(0, "seed of adapter initialization, data order and dropout", low=0, high=SEEDS)
    epochs: float = opt(
        1.0, "passes over the training samples; 0: keep the adapter of lora.start as it is", low=0, high=1000
    )
    micro_batch_tokens: int = opt(
        2048,
        "tokens per forward pass, filled with whole conversations; at least corpus.max_length",
        low=1,
        high=1 << 20,
    )
    gradient_accumulation_steps: int = opt(16, "forward passes per optimizer step", low=1, high=100_000)
    learning_rate: float = opt(3e-4, "peak learning rate", above=0, high=1)
    warmup_ratio: float = opt(0.03, "share of the steps with linear warm-up; cosine decay follows", low=0, high=1)
    optimizer: str = opt(
        "adamw", "AdamW with moments in fp32, or in 8 bits by bitsandbytes", choices=("adamw", "adamw8bit")
    )
    matmul_accumulation: str = opt(
        "fp32",
        "accumulation dtype of the int8 matmuls; fp16 is used only where a benchmark at the start finds it faster and "
        "within tolerance",
        choices=("fp32", "fp16"),
    )
    weight_decay: float = opt(0.0, "AdamW weight decay", low=0, high=10)
    max_grad_norm: float = opt(1.0, "gradients are clipped to this norm", above=0, high=1e6)
    recompute: int | str = opt(
        "auto",
        "decoder layers with activation checkpointing: less memory, more time; -1: all; auto: the fewest that fit in "
        "free memory",
        hashed=False,
        choices=("auto",),
        low=-1,
        high=1000,
    )
    eval_steps: int = opt(
        200, "optimizer steps between validations; 0: only at the end", hashed=False, low=0, high=10**9
    )
    save_steps: int = opt(50, "optimizer steps between checkpoints", hashed=False, low=1, high=10**9)
    keep_checkpoints: int = opt(2, "number of checkpoints kept, newest first", hashed=False, low=1, high=1000)
    keep: str = opt(
        "last",
        "the adapter that the run ends with: that of the last step, or of the validation with the lowest loss",
        hashed="if set",
        choices=("last", "best"),
    )
    patience: int = opt(
        0, "stop early after this many validations without a lower loss; 0: never", hashed="if set", low=0, high=10**6
    )
    max_minutes: float = opt(
        0.0,
        "stop with a checkpoint after this many minutes, for job time limits; 0: no limit",
        hashed=False,
        low=0,
        high=1e7,
    )


@dataclass(frozen=True)
class Evaluate:
    """Questions to the base and the tuned model."""

    prompts: tuple[str, ...] = opt(
        ("Who are you?", "Explain what a GPU does in two sentences."), "answered by the base and the tuned model"
    )
    max_new_tokens: int = opt(96, "maximum answer length in tokens", low=1, high=100_000)
    instructions: bool = opt(False, "also ask 60 prompts whose answers are judged by rules")
    judge: bool = opt(False, "also answer 80 open questions, to be compared by people or a judge model")
    texts: tuple[str, ...] = opt(
        (), "files of text or of conversations for which perplexity and bits per byte are computed", hashed=False
    )
    choices: tuple[str, ...] = opt(
        (), "JSON Lines of multiple-choice questions, answered by log-likelihood", hashed=False
    )


@dataclass(frozen=True)
class Config:
    """A run."""

    name: str = opt("vicuna", "name of the run, whose folder is runs/<name>/<id>", kind="name")
    runs: str = opt("runs", "folder of all runs", hashed=False, kind="path")
    base: Base = field(default_factory=Base)
    corpus: Corpus = field(default_factory=Corpus)
    lora: Lora = field(default_factory=Lora)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


# Keys of older configs -> what to write instead: an old config is refused with a hint, never misread.
_TABLE = "write one [[corpus.source]] table per source, with path and, where needed, format, share and weight"
OLD_KEYS = {
    "train.accumulation": "it is now called train.gradient_accumulation_steps",
    "train.accumulate": "it is now called train.matmul_accumulation",
    **{f"corpus.{key}": _TABLE for key in ("sources", "formats", "sample", "mixture")},
}


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a run's TOML (or start from the defaults) and apply `overrides`, dotted keys to values.

    Raises UsageError: no such file, not TOML, an unknown key (the nearest known one is named), a value of a wrong type
    or out of range.
    """
    table = {} if path is None else schema.read_toml(Path(path))
    alone: dict[str, Any] = {}
    for dotted, value in (overrides or {}).items():
        _put(alone, dotted, value)
        _put(table, dotted, value)
    schema.build(Config, alone, "--set", OLD_KEYS)  # a mistake in an override is not one of the file
    return schema.build(Config, table, schema.snippet(path, 300) if path else "--set", OLD_KEYS)


def _put(table: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"{schema.show(dotted)}: {schema.show(section)} is a value, not a section")
    table[key] = value


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """`section.key=value` from the command line; the value is read as TOML, a bare word as a string."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {schema.snippet(assignment)}: expected section.key=value")
        try:
            overrides[dotted.strip()] = schema.parse_toml(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            overrides[dotted.strip()] = text
    return overrides


def dump(config: Config) -> str:
    """The resolved config as TOML, every field with its documented line. `load` reads it back unchanged."""
    return "\n".join(schema.to_toml(config)) + "\n"


def hashed(config: Any) -> dict[str, Any]:
    """The config as plain values without the fields that cannot change a result."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            out[item.name] = hashed(value)
        elif item.metadata["hashed"] is True or (item.metadata["hashed"] and value != item.default):
            out[item.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [hashed(entry) if dataclasses.is_dataclass(entry) else entry for entry in value]
    return dict(value) if isinstance(value, Mapping) else value


def describe(prefixes: Sequence[str] = ("",)) -> Iterator[str]:
    """One line per field for `--help`: dotted name, what it is, default; only fields and sections in `prefixes`."""
    for dotted, item in schema.list_fields(Config):
        if not any(not prefix or dotted == prefix or dotted.startswith(f"{prefix}.") for prefix in prefixes):
            continue
        default = (
            "" if item.default in ("", (), dataclasses.MISSING) else f" (default {schema.toml_value(item.default)})"
        )
        choices = f" [{'|'.join(item.metadata['choices'])}]" if item.metadata["choices"] else ""
        yield f"{dotted}: {item.metadata['doc']}{choices}{default}"


def required(config: Config, dotted: str, flag: str = "") -> Any:
    """The value of a field that the stage needs. Raises UsageError if it is empty."""
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    if not value:
        flag = flag or f"--set {dotted}=..."
        raise UsageError(f"{dotted} is empty: pass {flag}, or a --config FILE that sets it ({_doc(dotted)})")
    return value


def _doc(dotted: str) -> str:
    return next(item.metadata["doc"] for name, item in schema.list_fields(Config) if name == dotted)

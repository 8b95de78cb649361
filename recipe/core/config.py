"""One TOML file is a run: frozen dataclasses, one documented line per field, unknown keys are errors.

The documented lines are the `--help` too (`describe`), and the resolved copy in a run's directory (`dump`) replays it.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.core.errors import UsageError

# Dotted keys of older configs -> their new names: an old config is refused with a hint, never misread.
RENAMED = {
    "train.accumulation": "train.gradient_accumulation_steps",
    "train.accumulate": "train.matmul_accumulation",
}


def opt(default: Any, doc: str, *, hashed: bool = True, choices: tuple[str, ...] = ()) -> Any:
    """A config field. `hashed=False` marks what cannot change a result: where things lie, how often to save."""
    return field(default=default, metadata={"doc": doc, "hashed": hashed, "choices": choices})


def mapping(doc: str) -> Any:
    """A config field that maps strings to strings, empty by default."""
    return field(default_factory=dict, metadata={"doc": doc, "hashed": True, "choices": ()})


@dataclass(frozen=True)
class Base:
    """The pretrained model."""

    source: str = opt("", "raw weights: a folder (Meta consolidated.*.pth, Hugging Face) or a .gguf file", hashed=False)
    path: str = opt("", "converted weights: `convert` writes them here, every later stage reads them", hashed=False)
    dtype: str = opt("fp16", "how converted weights are stored", choices=("fp16", "fp32"))
    precision: str = opt(
        "int8", "how the frozen base is held in memory while training", choices=("int8", "nf4", "fp16", "fp32")
    )


@dataclass(frozen=True)
class Source:
    """One file or folder of raw conversations: a `[[corpus.source]]` table."""

    path: str = opt(
        "", "raw conversations: a JSON, JSON Lines or Parquet file, or a folder that `datasets` saved", hashed=False
    )
    format: str = opt("", "the format of its records; empty: recognized for each record")
    share: float = opt(1.0, "share of the source's conversations that is used, drawn by their ids")
    weight: float = opt(
        0.0, "relative share of the training tokens among the weighted sources, reached by repeating samples; 0: none"
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
    path: str = opt("", "the prepared corpus: train.jsonl, val.jsonl, report.md", hashed=False)
    template: str = opt("vicuna_v1.1", "how a conversation is rendered as text")
    max_length: int = opt(2048, "longest sample in tokens; longer conversations are split between turns")
    val_fraction: float = opt(0.02, "share of the conversations used for validation")
    seed: int = opt(0, "seed of the validation split and of shares")
    identity_name: str = opt("", "the name the model should answer to; empty: no identity conversations")
    identity_organisation: str = opt("", "the organisation that the model names as its maker")
    identity_repeat: int = opt(1, "how often the identity conversations are repeated in the training samples")
    html: bool = opt(True, "convert a chat page's HTML to Markdown")
    replace: tuple[str, ...] = opt((), "rules 'pattern => text': regular expressions, applied to every turn in order")
    script: str = opt(
        "keep",
        "Chinese script: t2s makes traditional simplified, s2t the reverse",
        choices=("keep", "t2s", "s2t"),
    )
    repair_roles: bool = opt(True, "join or drop turns so that roles alternate; false: drop such conversations")
    rounds: int = opt(0, "maximum question-answer pairs per conversation; 0: no limit")
    blocked_words: tuple[str, ...] = opt((), "drop conversations that contain one of these words")
    languages_keep: tuple[str, ...] = opt((), "ISO 639-1 codes of the only languages kept; empty: all")
    languages_skip: tuple[str, ...] = opt((), "ISO 639-1 codes of languages to drop")
    repeated_digits: int = opt(0, "drop conversations with a run of this many equal digits; 0: off")
    decontaminate: tuple[str, ...] = opt(
        (),
        "files of evaluation prompts, one a line or in any known format; conversations that contain one are dropped",
        hashed=False,
    )
    duplicates: str = opt(
        "exact",
        "repeated conversations to drop: none, those with equal text, or similar ones too",
        choices=("keep", "exact", "near"),
    )
    near_threshold: float = opt(0.8, "Jaccard threshold on word 3-grams for near-duplicates")
    over_long: str = opt(
        "drop",
        "a question-answer pair that exceeds max_length: drop it, or truncate its answer at a sentence",
        choices=("drop", "truncate"),
    )
    processes: int = opt(0, "worker processes; 0: one per core", hashed=False)


@dataclass(frozen=True)
class Lora:
    """The LoRA adapter (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = opt(8, "rank r of the update")
    alpha: int = opt(16, "the update is scaled by alpha / rank")
    dropout: float = opt(0.05, "dropout on the input of the adapter")
    target_modules: tuple[str, ...] = opt(("q_proj", "v_proj"), "linear layers of the decoder that get an adapter")


@dataclass(frozen=True)
class Train:
    """The optimization."""

    seed: int = opt(0, "seed of adapter initialization, data order and dropout")
    epochs: float = opt(1.0, "passes over the training samples")
    micro_batch_tokens: int = opt(
        2048, "tokens per forward pass, filled with whole conversations; at least corpus.max_length"
    )
    gradient_accumulation_steps: int = opt(16, "forward passes per optimizer step")
    learning_rate: float = opt(3e-4, "peak learning rate")
    warmup_ratio: float = opt(0.03, "share of the steps with linear warm-up; cosine decay follows")
    optimizer: str = opt(
        "adamw", "AdamW with moments in fp32, or in 8 bits by bitsandbytes", choices=("adamw", "adamw8bit")
    )
    matmul_accumulation: str = opt(
        "fp32",
        "accumulation dtype of the int8 matmuls; fp16 is used only where a benchmark at the start finds it faster and "
        "within tolerance",
        choices=("fp32", "fp16"),
    )
    weight_decay: float = opt(0.0, "AdamW weight decay")
    max_grad_norm: float = opt(1.0, "gradients are clipped to this norm")
    recompute: int | str = opt(
        "auto",
        "decoder layers with activation checkpointing: less memory, more time; -1: all; auto: the fewest that fit in "
        "free memory",
        hashed=False,
        choices=("auto",),
    )
    eval_steps: int = opt(200, "optimizer steps between validations; 0: only at the end", hashed=False)
    save_steps: int = opt(50, "optimizer steps between checkpoints", hashed=False)
    keep_checkpoints: int = opt(2, "number of checkpoints kept, newest first", hashed=False)
    max_minutes: float = opt(
        0.0,
        "stop with a checkpoint after this many minutes, for job time limits; 0: no limit",
        hashed=False,
    )


@dataclass(frozen=True)
class Evaluate:
    """Questions to the base and the tuned model."""

    prompts: tuple[str, ...] = opt(
        ("Who are you?", "Explain what a GPU does in two sentences."), "answered by the base and the tuned model"
    )
    max_new_tokens: int = opt(96, "maximum answer length in tokens")


@dataclass(frozen=True)
class Config:
    """A run."""

    name: str = opt("vicuna", "the run's name: it lands under runs/<name>/")
    runs: str = opt("runs", "where runs land", hashed=False)
    base: Base = field(default_factory=Base)
    corpus: Corpus = field(default_factory=Corpus)
    lora: Lora = field(default_factory=Lora)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


_TABLE = "write one [[corpus.source]] table per source, with path and, where needed, format, share and weight"
REPLACED = {f"corpus.{key}": _TABLE for key in ("sources", "formats", "sample", "mixture")}  # old key -> new form


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a run's TOML (or start from the defaults) and apply `overrides`, dotted keys to values.

    Raises UsageError: no such file, not TOML, an unknown key (the nearest known one is named), a wrong type.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"no config file at {path}: the shipped ones lie in recipe/configs/") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from None
    for dotted, value in (overrides or {}).items():
        *sections, key = dotted.split(".")
        target = table
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"{dotted}: {section} is a value, not a section")
        target[key] = value
    return _build(Config, table, where=str(path) if path else "the command line")


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """`section.key=value` from the command line; the value is read as TOML, a bare word as a string."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: expected section.key=value")
        try:
            overrides[dotted.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[dotted.strip()] = text
    return overrides


def dump(config: Config) -> str:
    """The resolved config as TOML, every field with its documented line. `load` reads it back unchanged."""
    return "\n".join(_toml(config, prefix="")) + "\n"


def hashed(config: Any) -> dict[str, Any]:
    """The config as plain values without the fields that cannot change a result."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            out[item.name] = hashed(value)
        elif item.metadata["hashed"]:
            out[item.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [hashed(entry) if dataclasses.is_dataclass(entry) else entry for entry in value]
    return dict(value) if isinstance(value, Mapping) else value


def describe() -> Iterator[str]:
    """One line per field for `--help`: dotted name, default, what it is."""
    for dotted, item in _fields(Config):
        default = "" if item.default in ("", (), dataclasses.MISSING) else f" (default {_toml_value(item.default)})"
        choices = f" [{'|'.join(item.metadata['choices'])}]" if item.metadata["choices"] else ""
        yield f"{dotted}: {item.metadata['doc']}{choices}{default}"


def required(config: Config, dotted: str, flag: str = "") -> Any:
    """The value of a field this stage cannot do without. Raises UsageError where it is empty."""
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    if not value:
        how = f"pass {flag} or set it" if flag else "set it"
        raise UsageError(f"{dotted} is empty: {how} in the config ({_doc(dotted)})")
    return value


def _doc(dotted: str) -> str:
    return next(item.metadata["doc"] for name, item in _fields(Config) if name == dotted)


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            yield from _fields(typing.cast(type, item.type), f"{prefix}{item.name}.")
            continue
        yield prefix + item.name, item
        if table := _table_type(item):
            yield from _fields(table, f"{prefix}{item.name}[].")


def _table_type(item: dataclasses.Field) -> type | None:
    """The dataclass of a field that is an array of tables; None for any other field."""
    entry = next(iter(typing.get_args(item.type)), None)
    return entry if isinstance(entry, type) and dataclasses.is_dataclass(entry) else None


def _build(cls: Any, table: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in table:
        if key not in known:
            if new := RENAMED.get(prefix + key):
                raise UsageError(f"{prefix}{key} in {where} is now called {new}: rename the key")
            if instead := REPLACED.get(prefix + key):
                raise UsageError(f"{prefix}{key} in {where} is not a key any more: {instead}")
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise UsageError(f"unknown key {prefix}{key} in {where}; {hint}")
    values = {}
    for key, value in table.items():
        item, dotted = known[key], prefix + key
        if dataclasses.is_dataclass(item.type):
            if not isinstance(value, Mapping):
                raise UsageError(f"{dotted} in {where} is a section, found {value!r}")
            values[key] = _build(item.type, value, where, f"{dotted}.")
        else:
            values[key] = _checked(item, value, dotted, where)
    return cls(**values)


def _checked(item: dataclasses.Field, value: Any, dotted: str, where: str) -> Any:
    """`value` as the field's type; an int is accepted for a float, a list of strings for a tuple."""
    expected: Any = item.type
    choices = item.metadata["choices"]
    if table := _table_type(item):
        if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in value):
            raise UsageError(f"{dotted} in {where}: expected tables, as [[{dotted}]] in a file, found {value!r}")
        return tuple(_build(table, entry, where, f"{dotted}[{number}].") for number, entry in enumerate(value))
    if typing.get_origin(expected) is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value.values()):
            raise UsageError(f"{dotted} in {where}: expected a table of strings, found {value!r}")
        return dict(value)
    if isinstance(expected, types.GenericAlias):
        if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
            raise UsageError(f"{dotted} in {where}: expected a list of strings, found {value!r}")
        return tuple(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(expected, types.UnionType):  # a number, or one of a few words
        wrong = type(value) is not int and value not in choices
        known = f"a whole number or {', '.join(choices)}"
    elif choices:
        wrong, known = value not in choices, f"one of {', '.join(choices)}"
    else:
        wrong, known = type(value) is not expected, expected.__name__
    if wrong:
        raise UsageError(f"{dotted} in {where}: expected {known}, found {value!r}")
    return value


def _toml(config: Any, prefix: str) -> Iterator[str]:
    sections = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            sections.append((f"[{prefix}{item.name}]", value, f"{prefix}{item.name}."))
        elif value and _table_type(item):
            sections += [(f"[[{prefix}{item.name}]]", entry, f"{prefix}{item.name}.") for entry in value]
        else:
            yield f"{item.name} = {_toml_value(value)}  # {item.metadata['doc']}"
    for heading, value, inner in sections:
        yield f"\n{heading}"
        yield from _toml(value, inner)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_value(key)} = {_toml_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # TOML's basic strings and integers are JSON's

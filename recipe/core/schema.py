"""Dataclasses as a TOML schema: fields with a documented line and a range, read with one sentence per mistake, written.

Every value is checked when it is read: its type, that it is finite and in its range, that a path can be a path.
"""

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipe.core.errors import UsageError
from recipe.core.text import snippet

FILE_BYTES = 1 << 20  # a config is a few kilobytes
TEXT_CHARACTERS = 100_000
PATH_BYTES, COMPONENT_BYTES = 4096, 255  # the limits of Linux
NAME_CHARACTERS = 100
# A dotted key of many parts: tomllib needs memory that is quadratic in their number.
DOTTED = re.compile(r"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){20}")


def opt(
    default: Any,
    doc: str,
    *,
    hashed: bool | str = True,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    kind: str = "text",
) -> Any:
    """A config field with its documented line. `hashed=False`: it cannot change a result, such as a path.
    `hashed="if set"`: only another value than the default can, so that adding the field changes no run's id.

    `choices`: the only words, or list entries. Numbers: at least `low`, greater than `above`, at most `high`. `kind` of
    a string: text, path, file (a path whose name need not be UTF-8), or name (one path component).
    """
    metadata = {"doc": doc, "hashed": hashed, "choices": choices, "low": low, "above": above, "high": high}
    return dataclasses.field(default=default, metadata={**metadata, "kind": kind})


def mapping(doc: str) -> Any:
    """A config field that maps strings to strings, empty by default."""
    return dataclasses.field(default_factory=dict, metadata={"doc": doc, "hashed": True, "choices": (), "kind": "text"})


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UsageError if there is none or it is not TOML."""
    shown = snippet(path, 300)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{shown} is not a regular file, expected a TOML file")
        if path.stat().st_size > FILE_BYTES:
            raise UsageError(
                f"{shown} has {path.stat().st_size:,} bytes, expected a TOML file of at most {FILE_BYTES:,}"
            )
        return parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no config file at {shown}; see recipe/configs/ for examples") from None
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror or snippet(error)}; check the path") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a NUL in the path, a huge number
        reason = "nested too deeply" if isinstance(error, RecursionError) else snippet(error)
        raise UsageError(f"{shown} is not a TOML file: {reason}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text. Raises ValueError or RecursionError."""
    if DOTTED.search(text):
        raise ValueError("a key has more than 20 parts")
    return tomllib.loads(text)


def list_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted name, field) of every value of a dataclass, those of its sections and tables included."""
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            yield from list_fields(typing.cast(type, item.type), f"{prefix}{item.name}.")
            continue
        yield prefix + item.name, item
        if table := table_type(item):
            yield from list_fields(table, f"{prefix}{item.name}[].")


def table_type(item: dataclasses.Field) -> type | None:
    """The dataclass of a field that is an array of tables; None for any other field."""
    entry = next(iter(typing.get_args(item.type)), None)
    return entry if isinstance(entry, type) and dataclasses.is_dataclass(entry) else None


def build(cls: Any, table: Mapping[str, Any], origin: str, old_keys: Mapping[str, str], prefix: str = "") -> Any:
    """The dataclass `cls` from a table. `old_keys`: dotted keys that are no longer known -> what replaces them.

    Raises UsageError for an unknown key (the nearest known one is named) and for a value that its field cannot have.
    """
    known = {item.name: item for item in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        dotted = prefix + key
        if key not in known:
            raise UsageError(_explain_unknown(key, dotted, prefix, known, origin, old_keys))
        item = known[key]
        if dataclasses.is_dataclass(item.type):
            if not isinstance(value, Mapping):
                raise UsageError(f"{dotted} in {origin} is a section, found {show(value)}")
            values[key] = build(item.type, value, origin, old_keys, f"{dotted}.")
        elif table_cls := table_type(item):
            if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in value):
                raise UsageError(f"{dotted} in {origin}: expected [[{dotted}]] tables, found {show(value)}")
            entries = enumerate(value)
            values[key] = tuple(build(table_cls, e, origin, old_keys, f"{dotted}[{n}].") for n, e in entries)
        else:
            values[key] = _read_value(item, value, f"{dotted} in {origin}")
    return cls(**values)


def _explain_unknown(
    key: str, dotted: str, prefix: str, known: Mapping[str, Any], origin: str, old_keys: Mapping[str, str]
) -> str:
    if instead := old_keys.get(dotted):
        return f"{dotted} in {origin} is no longer a key: {instead}"
    near = difflib.get_close_matches(key[:NAME_CHARACTERS], known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {snippet(dotted)} in {origin}; {hint}"


def _read_value(item: dataclasses.Field, value: Any, name: str) -> Any:
    """`value` as the type of the field; an int is accepted for a float, a list of strings for a tuple."""
    expected: Any = item.type
    if typing.get_origin(expected) is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value.values()):
            raise UsageError(f"{name}: expected a table of strings, found {show(value)}")
        for text in (*value.keys(), *value.values()):
            _check_text(item, text, name)
        return dict(value)
    if isinstance(expected, types.GenericAlias):
        return _read_list(item, value, name)
    if expected is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    choices = item.metadata["choices"]
    if isinstance(expected, types.UnionType):  # a number, or one of a few words
        right = type(value) is int or (isinstance(value, str) and value in choices)
        wanted = f"a whole number or {', '.join(choices)}"
    elif choices:
        right, wanted = isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
    else:
        words = {int: "a whole number (int)", float: "a number (float)", bool: "true or false", str: "a string"}
        right, wanted = type(value) is expected, words[expected]
    if not right:
        raise UsageError(f"{name}: expected {wanted}, found {show(value)}")
    if type(value) in (int, float):
        _check_number(item, value, name)
    elif isinstance(value, str):
        _check_text(item, value, name)
    return value


def _read_list(item: dataclasses.Field, value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
        raise UsageError(f"{name}: expected a list of strings, found {show(value)}")
    choices = item.metadata["choices"]
    for entry in value:
        _check_text(item, entry, name)
        if choices and entry not in choices:
            near = difflib.get_close_matches(entry[:NAME_CHARACTERS], choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(choices)}"
            raise UsageError(f"{name}: found {show(entry)}, {hint}")
    if choices and (not value or len(set(value)) < len(value)):
        raise UsageError(f"{name}: expected some of {', '.join(choices)}, each once, found {show(list(value))}")
    return tuple(value)


def _check_number(item: dataclasses.Field, value: float, name: str) -> None:
    low, above, high = (item.metadata[key] for key in ("low", "above", "high"))
    finite = isinstance(value, int) or math.isfinite(value)
    enough = (low is None or value >= low) and (above is None or value > above)
    if finite and enough and (high is None or value <= high):
        return
    lower = f"at least {low:,}" if low is not None else f"a number above {above:,}" if above is not None else ""
    upper = f"at most {high:,}" if high is not None else ""
    wanted = " and ".join(limit for limit in (lower, upper) if limit) or "a finite number"
    raise UsageError(f"{name}: expected {wanted}, found {show(value)}")


def _check_text(item: dataclasses.Field, value: str, name: str) -> None:
    """No text that cannot be a file's, a path's or a name's content."""
    kind = item.metadata["kind"]
    if kind == "file":  # its name on the disk need not be UTF-8: Python escapes other bytes as surrogates
        value = "".join("?" if "\udc80" <= c <= "\udcff" else c for c in value)
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{name}: expected text in UTF-8 without NUL, found {show(value)}")
    if len(value) > TEXT_CHARACTERS:
        raise UsageError(f"{name}: expected at most {TEXT_CHARACTERS:,} characters, found {len(value):,}")
    if kind == "text":
        return
    encoded = [component.encode() for component in value.split("/")]
    if not value.isprintable() and value:
        raise UsageError(f"{name}: expected a {kind} without control characters, found {show(value)}")
    if len(value.encode()) > PATH_BYTES or any(len(component) > COMPONENT_BYTES for component in encoded):
        raise UsageError(f"{name}: expected a path of at most {COMPONENT_BYTES} bytes per part, found {show(value)}")
    if kind == "name" and (not value.strip() or "/" in value or value in (".", "..") or len(value) > NAME_CHARACTERS):
        limit = f"a folder name without '/' of at most {NAME_CHARACTERS} characters"
        raise UsageError(f"{name}: expected {limit}, found {show(value)}")


def show(value: Any) -> str:
    """A value inside an error message: short and printable, whatever it is."""
    try:
        return snippet(repr(value), 80)
    except (ValueError, RecursionError):  # an int of many digits, a deep list
        return "a value too large to print"


def to_toml(config: Any, prefix: str = "") -> Iterator[str]:
    """The lines of a dataclass as TOML, each value with its documented line."""
    sections = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            sections.append((f"[{prefix}{item.name}]", value, f"{prefix}{item.name}."))
        elif value and table_type(item):
            sections += [(f"[[{prefix}{item.name}]]", entry, f"{prefix}{item.name}.") for entry in value]
        else:
            yield f"{item.name} = {toml_value(value)}  # {item.metadata['doc']}"
    for heading, value, inner in sections:
        yield f"\n{heading}"
        yield from to_toml(value, inner)


def toml_value(value: Any) -> str:
    """A value as TOML that reads back unchanged."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    # Basic strings and integers of TOML are those of JSON, but for U+007F, which TOML wants escaped.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return text.encode(errors="replace").decode()  # TOML has no escape for a file name that is not UTF-8

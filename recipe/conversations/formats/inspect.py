"""What a source looks like: its keys, samples, the format it is in, and the lines of TOML that would read it."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.conversations.formats import detect
from recipe.conversations.formats.base import RefusedError
from recipe.conversations.formats.pairs import CONTEXTS
from recipe.conversations.formats.turns import SYSTEM_KEYS, TEXT_KEYS
from recipe.conversations.messages import Conversation
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.text import printable, snippet

RECORDS = 200  # that are looked at
SAMPLES, SAMPLE_LENGTH = 3, 400
_QUESTIONS = ("question", "query", "instruction", "prompt", "input", "user", "human", "ask", "problem")
_ANSWERS = ("answer", "response", "output", "completion", "assistant", "reply", "target", "solution", "bot")


@dataclass
class Inspection:
    """The first records of a source."""

    path: str
    records: int = 0
    conversations: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # reason and detail -> records
    keys: Counter[tuple[str, str]] = field(default_factory=Counter)  # (path of a key, type) -> records
    formats: Counter[str] = field(default_factory=Counter)
    choices: tuple[str, ...] = ()  # formats that read a record differently
    nearest: list[str] = field(default_factory=list)  # where no format was recognized
    samples: list[str] = field(default_factory=list)
    toml: list[str] = field(default_factory=list)


def describe_file(path: Path) -> Inspection:
    """What the first `RECORDS` records of a source show. Raises RecipeError where the file cannot be read."""
    out = Inspection(str(path))
    unknown: Any = None
    names = {id(item): name for name, item in detect.FORMATS.items()}
    for number, record in enumerate(itertools.islice(detect.raw_records(path, path.name), RECORDS)):
        out.records += 1
        if isinstance(record, Record):
            _count_keys(record.value, out)
            try:
                format = detect.recognize(record.value)
            except RefusedError as error:
                format = None
                out.choices = out.choices or error.formats
            out.formats.update([names[id(format)]] if format else [])
            unknown = unknown if format or unknown is not None else record.value
        for item in detect.conversations(record, number, path.name):
            if isinstance(item, Conversation):
                out.conversations += 1
            else:
                out.rejected[_explain(item)] += 1
    out.nearest = detect.find_nearest(unknown) if not out.conversations else []
    out.toml = _build_toml(out, unknown)
    return out


def _explain(item: Rejected) -> str:
    return f"{item.reason} ({item.detail})"


def _count_keys(value: Any, out: Inspection) -> None:
    if len(out.samples) < SAMPLES:
        out.samples.append(snippet(json.dumps(value, ensure_ascii=False, default=str), SAMPLE_LENGTH))
    found: set[tuple[str, str]] = set()
    _find_keys(value, "", 0, found)
    out.keys.update(found)


def _find_keys(value: Any, path: str, depth: int, found: set[tuple[str, str]]) -> None:
    """Keys down to three levels; of a list its first elements."""
    if isinstance(value, dict) and depth < 3:
        for key, inner in itertools.islice(value.items(), 30):
            inner_path = f"{path}.{key}" if path else str(key)
            found.add((inner_path, _name_type(inner)))
            _find_keys(inner, inner_path, depth + 1, found)
    if isinstance(value, list):
        for item in value[:5]:
            _find_keys(item, f"{path}[]", depth, found)


def _name_type(value: Any) -> str:
    if isinstance(value, list):
        kinds = sorted({_name_type(item) for item in value[:5]})
        return f"list of {' or '.join(kinds)}" if kinds else "empty list"
    names = {str: "text", bool: "true or false", int: "number", float: "number", dict: "object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _build_toml(out: Inspection, unknown: Any) -> list[str]:
    lines = ["[[corpus.source]]", f"path = {_quote(out.path)}"]
    if out.choices:
        others = f", or {' or '.join(out.choices[1:])}" if len(out.choices) > 1 else ""
        return [*lines, f"format = {_quote(out.choices[0])}  # as is meant{others}"]
    if out.conversations or not isinstance(unknown, dict):
        return lines
    fields = _guess_turns(unknown) or _guess_pair(unknown)
    pairs = ", ".join(f"{name} = {_quote(path)}" for name, path in fields.items())
    return [*lines, f"fields = {{ {pairs} }}  # a guess from the names of the keys: compare it with the samples"]


def _guess_turns(record: dict[str, Any]) -> dict[str, str]:
    """The list of objects with most elements, and in it the keys that look like a role and a text."""
    lists = {key: value for key, value in record.items() if isinstance(value, list) and value}
    lists = {key: value for key, value in lists.items() if isinstance(value[0], dict)}
    for key in sorted(lists, key=lambda key: -len(lists[key])):
        texts = [name for name, value in lists[key][0].items() if isinstance(value, str)]
        if len(texts) < 2:
            continue
        content = next((name for name in TEXT_KEYS if name in texts), "") or max(
            texts, key=lambda name: sum(len(turn.get(name) or "") for turn in lists[key] if _has_text(turn, name))
        )
        role = next((name for name in ("role", "from", "speaker", "sender", "author") if name in texts), "")
        role = role or next(name for name in texts if name != content)
        return {"messages": key, "role": role, "content": content}
    return {}


def _has_text(turn: Any, name: str) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get(name), str)


def _guess_pair(record: dict[str, Any]) -> dict[str, str]:
    """Two text fields by their names, or where these tell nothing the longest ones; with context and system prompt."""
    texts = {key: value for key, value in record.items() if isinstance(value, str)}
    found = {"system": next((key for key in SYSTEM_KEYS if key in texts), "")}
    for part, names in (("question", _QUESTIONS), ("answer", _ANSWERS)):
        free = [key for key in texts if key not in found.values()]
        found[part] = next((key for name in names for key in free if name in key.lower()), "")
    found["context"] = next((key for key in (*CONTEXTS, "input") if key in texts and key not in found.values()), "")
    missing = [part for part in ("question", "answer") if not found[part]]
    free = [key for key in texts if key not in (*found.values(), *detect.ID_KEYS)]
    longest = sorted(free, key=lambda key: -len(texts[key]))[: len(missing)]
    left = iter(key for key in free if key in longest)
    found |= {part: next(left, "...") for part in missing}
    return {part: found[part] for part in ("question", "context", "answer", "system") if found[part]}


def _quote(text: str) -> str:
    """A TOML basic string of printable characters."""
    text = text.encode("utf-8", "replace").decode()
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def text(inspection: Inspection) -> str:
    """The inspection for a person; every text of the source is cut and made printable."""
    out = inspection
    taken = ", ".join(f"{name} ({count:,} records)" for name, count in out.formats.most_common())
    lines = [f"{printable(out.path)}: the first {out.records:,} records, {out.conversations:,} conversations in them"]
    lines += ["", f"format: {taken or 'none recognized'}"]
    lines += [f"  nearest: {name} {detect.FORMATS[name].shape}" for name in out.nearest]
    lines += [f"  rejected: {count:,}, {snippet(reason, 300)}" for reason, count in out.rejected.most_common(5)]
    lines += ["", "keys:"]
    lines += [f"  {snippet(key, 60)}: {kind}, {count:,} records" for (key, kind), count in out.keys.most_common(40)]
    lines += ["", "samples:", *(f"  {sample}" for sample in out.samples)]
    lines += ["", "in the config:", *(f"  {line}" for line in out.toml)]
    return "\n".join(lines)

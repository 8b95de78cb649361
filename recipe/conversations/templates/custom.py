"""A user's own template, as a TOML file with the fields of `Template`."""

import dataclasses
import difflib
import functools
import tomllib
from pathlib import Path
from typing import Any

from recipe.conversations.templates.definition import Template
from recipe.core.errors import UsageError
from recipe.core.text import snippet

REQUIRED = ("system_turn", "user_turn", "assistant_header", "assistant_turn")


def is_custom(name: str) -> bool:
    """Whether it is the path of a TOML file and not a published name."""
    return name.endswith(".toml")


def load(path: Path) -> Template:
    """The template of that file. Raises UsageError: no such file, not TOML, a field that is missing or wrong."""
    try:
        return _load(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UsageError(f"the template {path} cannot be read ({error.strerror}): correct corpus.template") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the template {path} is not TOML ({snippet(error)}): correct the file") from None


@functools.lru_cache(maxsize=16)
def _load(path: Path, modified: int) -> Template:
    """Every sample of a corpus asks for its template: the file is read again only when it was modified."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    fields = {field.name: field.type for field in dataclasses.fields(Template) if field.name != "name"}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5) or [", ".join(fields)]
            raise UsageError(f"the template {path} has the unknown key {snippet(key)}; did you mean {near[0]}?")
    missing = [key for key in REQUIRED if key not in table]
    if missing:
        raise UsageError(f"the template {path} lacks {', '.join(missing)}; expected {', '.join(REQUIRED)}: add it")
    return Template(name=str(path), **{key: _checked(path, key, value, fields[key]) for key, value in table.items()})


def _checked(path: Path, key: str, value: Any, expected: Any) -> Any:
    """`value` as the type of its field."""
    if expected in (str, bool):
        if type(value) is expected:
            return value
        kind = "text" if expected is str else "true or false"
    else:
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        kind = "a list of texts"
    raise UsageError(f"the template {path} has {key} = {snippet(value)}; expected {kind}")

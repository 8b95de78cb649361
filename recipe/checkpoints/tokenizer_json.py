"""tokenizer.json files of others: checked as data, tried in a process that may die, and only then loaded here.

The tokenizers library panics, aborts or allocates without bound on several damaged files, which no `except` stops.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.checkpoints.files import check_not_pointer
from recipe.checkpoints.pieces import BYTE_PIECE, check_texts
from recipe.core.errors import RecipeError
from recipe.core.files import sha256
from recipe.core.text import snippet

if TYPE_CHECKING:
    import tokenizers

NAME = "tokenizer.json"
MAX_BYTES = 64 << 20  # that of LLaMA 3, with 128,256 tokens and 280,147 merges, has 9 MB
TRIAL_SECONDS = 120
TRIAL_MEMORY = 4 << 30
TRIAL = (
    "import resource, sys, tokenizers\n"
    "hard = resource.getrlimit(resource.RLIMIT_AS)[1]\n"
    f"limit = {TRIAL_MEMORY} if hard == resource.RLIM_INFINITY else min(hard, {TRIAL_MEMORY})\n"
    "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
    "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    "tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode()).encode('a b')\n"
)


def load(path: Path, rows: int, repairs: list[str]) -> "tokenizers.Tokenizer":
    """The tokenizer of a BPE tokenizer.json for an embedding of that many rows.

    Left out: merges by which text could become a special token, added tokens without a row of the embedding (listed
    in `repairs`), dropout. Raises RecipeError if it is not a BPE, or its parts do not fit together.
    """
    from tokenizers import Tokenizer

    text = json.dumps(_checked(_read(path), path, rows, repairs))
    if reason := _try(text.encode()):
        raise _damaged(path, reason)
    return Tokenizer.from_str(text)


def check(folder: Path) -> None:
    """Raises RecipeError if the tokenizer.json in `folder`, perhaps a stranger's, cannot be loaded or ends a process.

    For folders of this recipe: `load` is for those that are converted.
    """
    path = Path(folder) / NAME
    if path.is_file():
        _check_size(path)
        if reason := _try_once(path, sha256(path)):
            raise RecipeError(f"{path} cannot be loaded ({snippet(reason)}): convert or merge again")


@functools.lru_cache(8)
def _try_once(path: Path, content: str) -> str:
    """`_try` once for each `content` of a file, its sha256: a trial takes 0.1 to 0.3 seconds."""
    return _try(path.read_bytes())


def allowed_merges(merges: Iterable[Sequence[str]], reserved: set[str]) -> list[tuple[str, str]]:
    """The merges that do not lead from plain text to a special token or a byte piece."""
    return [
        (pair[0], pair[1])
        for pair in merges
        if "".join(pair) not in reserved and not BYTE_PIECE.fullmatch("".join(pair))
    ]


def _read(path: Path) -> Any:
    check_not_pointer(path)
    _check_size(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}: it is damaged")


def _checked(data: Any, path: Path, rows: int, repairs: list[str]) -> dict[str, Any]:
    try:
        model = data["model"]
        if model["type"] != "BPE":
            raise RecipeError(f"{path} is a {snippet(model['type'])}, expected the BPE of a LLaMA model")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise RecipeError(f"{path} marks parts of words, unlike LLaMA's: it is the tokenizer of another model")
        if any(kind == "Precompiled" for kind in _kinds(data.get("normalizer"))):
            raise RecipeError(f"{path} rewrites characters, unlike LLaMA's: it is the tokenizer of another model")
        data["added_tokens"] = _with_rows(data["added_tokens"], rows, path, repairs)
        reserved = {token["content"] for token in data["added_tokens"] if token["special"]}
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
        _check_vocabulary(model["vocab"], pairs, path)
        model["merges"] = allowed_merges(pairs, reserved)
        model["dropout"] = data["truncation"] = data["padding"] = None
        check_texts([*model["vocab"], *(token["content"] for token in data["added_tokens"])], path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, repr(error)) from None
    return data


def _check_vocabulary(vocab: dict[str, int], pairs: list[list[str]], path: Path) -> None:
    """Raises RecipeError unless the ids are distinct and every merge joins two tokens to a third."""
    ids = list(vocab.values())
    if not all(type(index) is int and 0 <= index < 1 << 24 for index in ids) or len(set(ids)) != len(ids):
        raise RecipeError(f"{path} gives two tokens one id, or a token none: download it again")
    for pair in pairs:
        if len(pair) != 2 or not all(pair) or not {*pair, "".join(pair)} <= vocab.keys():
            raise RecipeError(f"{path} has the merge {snippet(pair)} of what are not its tokens: download it again")


def _with_rows(tokens: list[dict[str, Any]], rows: int, path: Path, repairs: list[str]) -> list[dict[str, Any]]:
    """The added tokens that have a row of the embedding."""
    if not all(type(token["id"]) is int and token["id"] >= 0 and token["content"] for token in tokens):
        raise RecipeError(f"{path} has an added token without an id or a text: download it again")
    for token in tokens:
        if token["id"] >= rows:
            repairs.append(
                f"tokenizer.json: {snippet(token['content'])} is left out: the embedding has only {rows:,} rows"
            )
    return [token for token in tokens if token["id"] < rows]


def _kinds(value: Any) -> Iterator[str]:
    """The `type` of a component and of all in it."""
    if isinstance(value, dict):
        yield str(value.get("type"))
        for inner in value.values():
            yield from _kinds(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _kinds(inner)


def _try(text: bytes) -> str:
    """Why a process of its own, with bounded time and memory, cannot load and use the tokenizer; empty: it can."""
    command = [sys.executable, "-P", "-c", TRIAL]
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=TRIAL_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"loading it takes more than {TRIAL_SECONDS} seconds"
    if not done.returncode:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"loading it ended with status {done.returncode}"


def _damaged(path: Path, reason: object) -> RecipeError:
    return RecipeError(f"{path} is not a tokenizer.json ({snippet(reason)}): download it again")

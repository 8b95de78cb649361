"""Spans to token ids and labels: the only tokenizing path.

Every span is encoded by itself, so a token never straddles the border between what is trained and what is not, and no
offset has to be guessed afterwards. Two rules make the ids equal those of the usual one-string path:

- sentencepiece puts a space before a text (LLaMA's "dummy prefix"). It does so at the start of the text and after every
  special token, and nowhere else: a span that follows another span is encoded without it. Byte-level tokenizers have no
  such prefix, and the same code does nothing for them.
- special tokens come from the template alone. Those written out in a text are plain characters, as they are for
  sentencepiece itself.
"""

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipe.conversations.messages import Message
from recipe.conversations.templates import Piece, Special, render
from recipe.core.errors import RecipeError

IGNORED = -100  # torch's cross entropy skips this label


@dataclass(frozen=True)
class Encoders:
    """Private copies of a tokenizer that know no special tokens in text."""

    leading: Any  # for a span that starts a segment: with the dummy prefix, if the tokenizer has one
    inner: Any  # for a span that follows another span
    bos: int | None
    eos: int

    def ids(self, text: str, leading: bool) -> list[int]:
        if not text:
            return []
        backend = self.leading if leading else self.inner
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def encode(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of what `render` returns; a label is the id itself (not shifted) or -100 (not trained).

    `tokenizer`: a transformers PreTrainedTokenizerFast over a BPE model; it is not changed. Raises RecipeError for
    another kind of tokenizer, or one without an EOS token.
    """
    found = encoders(tokenizer)
    input_ids: list[int] = []
    labels: list[int] = []
    leading = True
    for piece in pieces:
        if isinstance(piece, Special):
            special = found.eos if piece.name == "eos" else found.bos
            ids = [] if special is None else [special]
        else:
            ids = found.ids(piece.text, leading)
        leading = isinstance(piece, Special) or (leading and not piece.text)
        input_ids += ids
        labels += ids if piece.trained else [IGNORED] * len(ids)
    return input_ids, labels


def visible(tokenizer: Any, pieces: Sequence[Piece]) -> list[tuple[str, bool]]:
    """(text, trained) of every token of what `render` returns, for a person; tokens that share a character are one."""
    found = encoders(tokenizer)
    out: list[tuple[str, bool]] = []
    leading = True
    for piece in pieces:
        if isinstance(piece, Special):
            out.append((f"<{piece.name}>", piece.trained))
        elif piece.text:
            backend, at = (found.leading if leading else found.inner), 0
            for _, end in backend.encode(piece.text, add_special_tokens=False).offsets:
                if end > at:
                    out.append((piece.text[at:end], piece.trained))
                    at = end
            out += [(piece.text[at:], piece.trained)] if at < len(piece.text) else []
        leading = isinstance(piece, Special) or (leading and not piece.text)
    return out


def prompt_ids(tokenizer: Any, template: str, messages: Sequence[Message]) -> list[int]:
    """The ids after which the model answers the last user message."""
    return encode(tokenizer, render(template, messages, open_turn=True))[0]


_cache: "weakref.WeakKeyDictionary[Any, Encoders]" = weakref.WeakKeyDictionary()


def encoders(tokenizer: Any) -> Encoders:
    """What encodes this tokenizer's spans; see `encode`. It can be sent to another process."""
    if tokenizer not in _cache:
        _cache[tokenizer] = _build(tokenizer)
    return _cache[tokenizer]


def _build(tokenizer: Any) -> Encoders:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RecipeError(
            f"the tokenizer is a {type(tokenizer).__name__}; expected a fast one (tokenizer.json): convert the base "
            "with recipe.convert"
        )
    if tokenizer.eos_token_id is None:
        raise RecipeError("the tokenizer has no EOS token, so an answer could not end; set eos_token in its config")
    spec = json.loads(backend.to_str())
    spec.update(truncation=None, padding=None, post_processor=None)
    _forget_special_tokens(spec, set(tokenizer.all_special_tokens))
    starts = tokenizer("")["input_ids"][:1]
    return Encoders(
        leading=_load(spec),
        inner=_load(_without_prefix(spec)),
        bos=tokenizer.bos_token_id if starts and starts[0] == tokenizer.bos_token_id else None,
        eos=tokenizer.eos_token_id,
    )


def _load(spec: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(json.dumps(spec))
    copy.encode_special_tokens = True  # a special token in a text is not looked for before the model runs
    return copy


def _forget_special_tokens(spec: dict[str, Any], special: set[str]) -> None:
    """Take away both ways in which text could become a special token: the search for added tokens, and merges.

    A conversion from sentencepiece derives merges from the vocabulary, and where it holds `</` and `s>` it derives one
    that builds `</s>` from plain characters. sentencepiece never merges into a control piece.
    """
    model = spec["model"]
    if model["type"] != "BPE":
        raise RecipeError(f"the tokenizer's model is {model['type']}; expected BPE, as in every LLaMA-like model")
    for token in spec["added_tokens"]:
        token["special"] |= token["content"] in special
    unreachable = special | {token["content"] for token in spec["added_tokens"] if token["special"]}
    model["merges"] = [merge for merge in model["merges"] if unreachable.isdisjoint(_merge(merge))]


def _merge(merge: Any) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def _without_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without the space before a text, wherever its normalizer or pre-tokenizer adds one."""

    def strip(step: dict[str, Any] | None) -> dict[str, Any] | None:
        if step is None or step["type"] == "Prepend":
            return None
        step = dict(step)
        for steps in ("normalizers", "pretokenizers"):
            if steps in step:
                step[steps] = [kept for kept in map(strip, step[steps]) if kept is not None]
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        elif "add_prefix_space" in step:
            step["add_prefix_space"] = False
        return step

    return {**spec, "normalizer": strip(spec["normalizer"]), "pre_tokenizer": strip(spec["pre_tokenizer"])}

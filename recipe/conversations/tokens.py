"""Spans to token ids and labels: the only tokenizing path.

Every span is encoded by itself, so that a token never crosses the border between trained and untrained text, and no
offset has to be guessed afterwards. Two rules make the ids equal those of the whole text, as `apply_chat_template`
tokenizes it:

- sentencepiece puts a space before a text (LLaMA's "dummy prefix"): at the start and, in LLaMA's original ("legacy")
  behaviour, after every special token. A span that follows another span is encoded without it. Byte-level tokenizers
  have no such prefix, and the same code does nothing for them.
- special tokens come from the template alone. Those written out in a text are plain characters, as they are for
  sentencepiece itself. `apply_chat_template` cannot tell the two apart: there, such text becomes a special token.
"""

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.conversations import templates
from recipe.conversations.messages import Message
from recipe.conversations.templates import Piece, Special, render
from recipe.core.errors import RecipeError

IGNORED = -100  # torch's cross entropy skips this label


@dataclass(frozen=True)
class Encoders:
    """Private copies of a tokenizer that know no special tokens in text."""

    leading: Any  # for a span that starts a segment: with the dummy prefix, if the tokenizer has one
    inner: Any  # for a span that follows another span
    bos: int | None  # None: the tokenizer does not begin a text with BOS
    eos: int
    special: Mapping[str, int]  # the id of every special token by its text
    prefix_after_special: bool = True  # whether a special token starts a new segment

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process: a tokenizer forgets there that it looks for no special tokens in a text."""
        self.__dict__.update(state)
        for backend in (self.leading, self.inner):
            backend.encode_special_tokens = True

    def ids(self, text: str, leading: bool) -> list[int]:
        """The ids of a text without special tokens."""
        if not text:
            return []
        backend = self.leading if leading else self.inner
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def special_ids(self, name: str) -> list[int]:
        """The id of a `Special` of that name; empty for a BOS that the tokenizer does not use.

        Raises RecipeError where the vocabulary has no special token of that text.
        """
        if name == "bos":
            return [] if self.bos is None else [self.bos]
        if name == "eos":
            return [self.eos]
        if name not in self.special:
            fitting = [known for known in templates.names() if self.special.keys() >= _needs(known)]
            raise RecipeError(
                f"the base has no special token {name}, which the template needs; templates that fit this base: "
                f"{', '.join(fitting)}: set corpus.template to one of them"
            )
        return [self.special[name]]

    def segments(self, pieces: Sequence[Piece], before: Piece | None = None) -> Iterator[tuple[Piece, bool]]:
        """Every piece, and whether it starts a segment. `before`: the piece before the first one, if there is one."""
        leading = before is None or (isinstance(before, Special) and self.prefix_after_special)
        for piece in pieces:
            yield piece, leading
            if isinstance(piece, Special):
                leading = self.prefix_after_special if self.special_ids(piece.name) else leading
            elif piece.text:
                leading = False


def encode(tokenizer: Any, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of what `render` returns; a label is the id itself (not shifted) or -100 (not trained).

    `tokenizer`: a transformers PreTrainedTokenizerFast over a BPE model; it is not changed. Raises RecipeError for
    another kind of tokenizer, or one without an EOS token or a special token of the template.
    """
    own = encoders(tokenizer)
    input_ids: list[int] = []
    labels: list[int] = []
    for piece, leading in own.segments(pieces):
        ids = own.special_ids(piece.name) if isinstance(piece, Special) else own.ids(piece.text, leading)
        input_ids += ids
        labels += ids if piece.trained else [IGNORED] * len(ids)
    return input_ids, labels


def visible(tokenizer: Any, pieces: Sequence[Piece]) -> list[tuple[str, bool]]:
    """(text, trained) of every token of what `render` returns, for a person; tokens that share a character are one."""
    own = encoders(tokenizer)
    out: list[tuple[str, bool]] = []
    for piece, leading in own.segments(pieces):
        if isinstance(piece, Special):
            out.append((piece.text, piece.trained))
        elif piece.text:
            backend, at = (own.leading if leading else own.inner), 0
            for _, end in backend.encode(piece.text, add_special_tokens=False).offsets:
                if end > at:
                    out.append((piece.text[at:end], piece.trained))
                    at = end
            out += [(piece.text[at:], piece.trained)] if at < len(piece.text) else []
    return out


def prompt_ids(tokenizer: Any, template: str, messages: Sequence[Message]) -> list[int]:
    """The ids after which the model answers the last user message."""
    return encode(tokenizer, render(template, messages, open_turn=True))[0]


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins a text with BOS; the `bos` argument of `templates.chat_template`."""
    return encoders(tokenizer).bos is not None


def end_ids(tokenizer: Any, template: str) -> list[int]:
    """The tokens at which generation must stop: the template's end mark, and EOS.

    Where the end mark is text (`templates.stop_string`), generation must look for that text too.
    """
    own = encoders(tokenizer)
    name = templates.stop_token(template) or "eos"
    return list(dict.fromkeys([*own.special_ids(name), own.eos]))


def check_template(tokenizer: Any, template: str) -> None:
    """Raises RecipeError where the tokenizer lacks a special token of the template."""
    for name in sorted(_needs(template)):
        encoders(tokenizer).special_ids(name)


def _needs(template: str) -> set[str]:
    return set(templates.get(template).special_tokens)


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
        special={token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]},
        prefix_after_special=not _prefix_at_start_only(spec),
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


def _prefix_at_start_only(spec: dict[str, Any]) -> bool:
    """Whether the dummy prefix is only at the start of the whole text: transformers' `legacy=False`."""
    step = spec["pre_tokenizer"] or {}
    return any(item.get("prepend_scheme") == "first" for item in step.get("pretokenizers", [step]))


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

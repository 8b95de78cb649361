"""transformers' `apply_chat_template` with our Jinja text, against our own ids and labels: they are equal."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations.messages import Message
from recipe.conversations.templates import Piece, Span, Special, chat_template, names, render
from recipe.conversations.tokens import IGNORED, begins_with_bos, encode, encoders, prompt_ids
from recipe.core.errors import RecipeError

TOKENIZERS = (
    "llama_tokenizer",
    "metaspace_tokenizer",
    "byte_level_tokenizer",
    "llama3_tokenizer",
    "llama2_tokenizer",
    "smollm2_tokenizer",
)
# Special tokens that only some of the tokenizers have, marks of the templates, Jinja's own syntax, white space.
PIECES = ["</s>", "<s>", "<|im_end|>", "<|eot_id|>", "<unk>", "[/INST]", "<<SYS>>", "###", "\n### Human:", "USER:"]
PIECES += ["<|user|>", "{{ 7 * 7 }}", "{% raw %}", "{{ bos_token }}", "'", "\\n", '"', " ", "  ", "\n", "\n\n", "\t"]
PIECES += ["\r\n", "\u00a0", "\u3000", "\u2581", "x", "Hello", "你好", "é", "\U0001f600", "1234", "{user}", "{eos}"]
texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)
turns = st.lists(texts, min_size=1, max_size=7)
systems = st.none() | texts


# The tokenizers whose bases have the special tokens of a template; templates without any fit every base.
FITTING = {"chatml": ("byte_level_tokenizer", "smollm2_tokenizer"), "llama-3": ("llama3_tokenizer",)}
PAIRS = [(tokenizer, name) for name in names() for tokenizer in FITTING.get(name, TOKENIZERS)]


@pytest.fixture(scope="session", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest):
    """(a tokenizer, the name of a template that fits it)"""
    tokenizer, template = request.param
    return request.getfixturevalue(tokenizer), template


def without_special_text(tokenizer, text: str) -> str:
    """The text with every special token in it broken up: Jinja could not tell it from the template's own."""
    for special in encoders(tokenizer).special:
        text = text.replace(special, special[0] + "~" + special[1:])
    return text


def conversation(system: str | None, turns: list[str]) -> list[Message]:
    head = [] if system is None else [Message("system", system)]
    return head + [Message(("user", "assistant")[index % 2], text) for index, text in enumerate(turns)]


def by_transformers(tokenizer, template: str, messages: list[Message], **options):
    text = chat_template(template, bos=begins_with_bos(tokenizer), generation="return_dict" in options)
    plain = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(plain, chat_template=text, **options)


@given(system=systems, turns=turns)
@settings(max_examples=60, deadline=None)
def test_transformers_renders_the_same_ids(pair, system: str | None, turns: list[str]) -> None:
    tokenizer, template = pair
    turns = [without_special_text(tokenizer, text) for text in turns]
    system = None if system is None else without_special_text(tokenizer, system)
    messages = conversation(system, turns)
    if len(turns) % 2:
        expected = by_transformers(tokenizer, template, messages, add_generation_prompt=True)
        assert prompt_ids(tokenizer, template, messages) == expected
        messages = messages[:-1]
    if len(turns) > 1:
        expected = by_transformers(tokenizer, template, messages)
        assert encode(tokenizer, render(template, messages))[0] == expected


def with_tokens_only(tokenizer, text: str) -> str:
    """The text without characters that give no token: SmolLM2 has none for some control characters."""
    return "".join(character for character in text if encoders(tokenizer).ids(character, leading=False))


@given(system=systems, pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_transformers_masks_the_same_tokens(pair, system: str | None, pairs: list[tuple[str, str]]) -> None:
    """But for an answer that begins with a character without a token: transformers then masks nothing from there on."""
    tokenizer, template = pair
    turns = [with_tokens_only(tokenizer, without_special_text(tokenizer, text)) for pair in pairs for text in pair]
    messages = conversation(None if system is None else without_special_text(tokenizer, system), turns)
    found = by_transformers(tokenizer, template, messages, return_dict=True, return_assistant_tokens_mask=True)
    input_ids, labels = encode(tokenizer, render(template, messages))
    assert found["input_ids"] == input_ids
    assert found["assistant_masks"] == [int(label != IGNORED) for label in labels]


def as_one_string(tokenizer, pieces: list[Piece]) -> list[Piece]:
    """The pieces as they would be if every special token's text in them were that special token."""
    longest_first = sorted(encoders(tokenizer).special, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Special):
            out.append(piece)
            continue
        for index, text in enumerate(pattern.split(piece.text)):
            out.append(Special(text, piece.trained) if index % 2 else Span(text, piece.trained))
    return out


@given(system=systems, turns=turns, index=st.integers(0, 100), special=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_only_special_token_text_differs(pair, system: str | None, turns: list[str], index: int, special: int) -> None:
    """What Jinja cannot: it gives one string, in which such text is a special token. To us it is text."""
    tokenizer, template = pair
    known = sorted(encoders(tokenizer).special)
    turns = turns[: (len(turns) - 1) // 2 * 2 + 1]
    turns[index % len(turns)] += f"a {known[special % len(known)]} b"
    messages = conversation(system, turns)
    pieces = render(template, messages, open_turn=True)
    expected = by_transformers(tokenizer, template, messages, add_generation_prompt=True)
    assert encode(tokenizer, as_one_string(tokenizer, pieces))[0] == expected
    own = prompt_ids(tokenizer, template, messages)
    assert own != expected
    from_template = [piece for piece in pieces if isinstance(piece, Special)]
    special_ids = set(encoders(tokenizer).special.values())
    assert [token for token in own if token in special_ids] == encode(tokenizer, from_template)[0]


def test_every_other_pair_is_refused(request: pytest.FixtureRequest) -> None:
    for fixture, template in {(tokenizer, name) for tokenizer in TOKENIZERS for name in names()} - set(PAIRS):
        with pytest.raises(RecipeError, match=r"templates that fit this base: vicuna_v1\.1, "):
            prompt_ids(request.getfixturevalue(fixture), template, [Message("user", "x")])

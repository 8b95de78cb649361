"""Counting by words gives the very numbers that encoding gives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations.formats import detect
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.templates import Piece, Span, Special, render
from recipe.conversations.tokens import IGNORED, encode, encoders

TRICKY = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\x1c",
    "▁",
    "</s>",
    "don't",
    "we'll",
    "'s",
    "12",
    "é",
    "½",
]
texts = st.lists(st.sampled_from(TRICKY) | st.text(max_size=6) | st.text("ab.,('1", max_size=6), max_size=12).map(
    "".join
)


def expected(tokenizer, pieces: list[Piece]) -> tuple[int, int]:
    input_ids, labels = encode(tokenizer, pieces)
    return len(input_ids), sum(label != IGNORED for label in labels)


@given(spans=st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("name", ["llama_tokenizer", "byte_level_tokenizer", "llama2_tokenizer"])
def test_any_text_has_as_many_tokens_as_its_encoding(request, name: str, spans: list[str]) -> None:
    tokenizer = request.getfixturevalue(name)
    counter = counters(tokenizer)
    pieces: list[Piece] = [Special("bos", False)]
    for index, text in enumerate(spans):
        pieces += [Span(text, index % 2 == 1), *([Special("eos", True)] if index % 2 else [])]
    assert counter(pieces) == expected(tokenizer, pieces)


_counters: dict[int, TokenCounter] = {}


def counters(tokenizer) -> TokenCounter:
    """One for all examples, so that words learnt from one are used in the next."""
    if id(tokenizer) not in _counters:
        _counters[id(tokenizer)] = TokenCounter(encoders(tokenizer))
    return _counters[id(tokenizer)]


@pytest.mark.parametrize("name", ["fastchat_dummy_conversation.json", "lf_oaast_sft_zh.json", "lf_kto_en_demo.json"])
def test_real_conversations_have_as_many_tokens_as_their_encoding(assets, llama2_tokenizer, name: str) -> None:
    counter = counters(llama2_tokenizer)
    for item in list(detect.read(assets / "conversations" / name))[:150]:
        assert isinstance(item, Conversation)
        turns = [message for message in item.messages if message.role != "system"]
        if [turn.role for turn in turns[:2]] == ["user", "assistant"]:
            pieces = render("vicuna_v1.1", turns[:2])
            assert counter(pieces) == expected(llama2_tokenizer, pieces)


def test_words_are_counted_apart_from_signs_and_digits(llama2_tokenizer, byte_level_tokenizer) -> None:
    text = "It's (a word),  12 times:\n\tx née"
    for tokenizer, words in (
        (llama2_tokenizer, {" (", "a", " word", "),", "  1", "2", ":", "\n", "\t", "x", " née"}),
        (byte_level_tokenizer, {"It", "'s", " (", "a", " word", "),", "  12", ":", " née"}),
    ):
        counter = TokenCounter(encoders(tokenizer))
        counter([Span(text if tokenizer is llama2_tokenizer else text.replace("\t", ""), True)])
        assert set(counter._words) >= words


def test_a_vocabulary_that_mixes_letters_and_signs_is_not_cut_between_them(llama_tokenizer, llama2_tokenizer) -> None:
    """The one made here has `</s` as a piece of its own."""
    from recipe.conversations.pipeline import counting

    for tokenizer, crosses in ((llama_tokenizer, True), (llama2_tokenizer, False)):
        spec = json.loads(encoders(tokenizer).inner.to_str())
        assert counting._crosses(spec, counting._MIXES) == crosses


def test_added_tokens_that_texts_are_searched_for_switch_it_off(byte_level_tokenizer) -> None:
    import copy

    tokenizer = copy.deepcopy(byte_level_tokenizer)
    tokenizer.add_tokens(["b c"])
    pieces: list[Piece] = [Span("a b c d", True)]
    assert TokenCounter(encoders(tokenizer))(pieces) == expected(tokenizer, pieces)


def test_a_counter_bounds_its_memory(monkeypatch, byte_level_tokenizer) -> None:
    from recipe.conversations.pipeline import counting

    monkeypatch.setattr(counting, "CACHED_WORDS", 10)
    counter = TokenCounter(encoders(byte_level_tokenizer))
    text = " ".join(f"word{number}" for number in range(100)) + " " + "x" * 1000
    pieces = render("vicuna_v1.1", [Message("user", text), Message("assistant", text)])
    assert counter(pieces) == expected(byte_level_tokenizer, pieces)
    assert len(counter._words) <= 10
    assert max(map(len, counter._words)) <= counting.CACHED_LENGTH

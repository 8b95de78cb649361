"""Counting by words gives the very numbers that encoding gives."""

import pickle
from dataclasses import replace

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
    compared = 0
    read = [item for item in detect.read(assets / "conversations" / name) if isinstance(item, Conversation)]
    for item in read[:150]:
        turns = [message for message in item.messages if message.role != "system"]
        if [turn.role for turn in turns[:2]] == ["user", "assistant"]:
            pieces = render("vicuna_v1.1", turns[:2])
            assert counter(pieces) == expected(llama2_tokenizer, pieces)
            compared += 1
    assert compared >= 100


class CountedModel:
    """A tokenizer's copy that notes what it is asked to encode."""

    def __init__(self, inner, asked: list[str]) -> None:
        self._inner, self._asked = inner, asked

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def encode_batch_fast(self, texts: list[str], **options):
        self._asked += texts
        return self._inner.encode_batch_fast(texts, **options)


def test_known_words_are_not_tokenized_again(byte_level_tokenizer) -> None:
    """Words, signs and digits in another order: their lengths are added up."""
    asked: list[str] = []
    real = encoders(byte_level_tokenizer)
    counter = TokenCounter(replace(real, inner=CountedModel(real.inner, asked)))
    counter([Span("It's (a word), née twice 12 times", True)])
    assert set(asked) >= {"It", "'s", " (", "a", " word", "),", " née", " 12"}
    asked.clear()
    again = [Span("It's née 12 times (a word), twice", True)]
    assert counter(again) == expected(byte_level_tokenizer, again)
    assert not asked


@pytest.mark.parametrize(
    ("name", "copies"), [("llama_tokenizer", 2), ("byte_level_tokenizer", 1), ("llama2_tokenizer", 1)]
)
def test_a_counter_sent_to_a_worker_counts_the_same(request, name: str, copies: int) -> None:
    """One copy of the tokenizer is sent where its encoding is not needed for spans at the start of a segment."""
    own = encoders(request.getfixturevalue(name))
    counter = TokenCounter(own)
    sent = pickle.dumps(counter)
    assert sent.count(b'"added_tokens"') == copies
    for text in ("a word", " ▁x  y\n\n z", "</s>"):
        pieces: list[Piece] = [Special("bos", False), Span(text, False), Span(text, True), Special("eos", True)]
        assert pickle.loads(sent)(pieces) == counter(pieces) == expected(request.getfixturevalue(name), pieces)


def test_a_vocabulary_that_mixes_letters_and_signs_is_counted_right(llama_tokenizer) -> None:
    """The one made here has `list?` and `spaces.` as pieces: a letter must not be counted apart from a sign."""
    assert {"list?", "</ul>", "ISTANT:"} <= llama_tokenizer.get_vocab().keys()
    for text in ("list? list?", "a</ul></ul> s>", "ASSISTANT: est.est."):
        pieces: list[Piece] = [Special("bos", False), Span(text, True)]
        assert counters(llama_tokenizer)(pieces) == expected(llama_tokenizer, pieces)


def test_added_tokens_that_texts_are_searched_for_switch_it_off(byte_level_tokenizer) -> None:
    import copy

    tokenizer = copy.deepcopy(byte_level_tokenizer)
    tokenizer.add_tokens(["b c"])
    pieces: list[Piece] = [Span("a b c d", True)]
    assert TokenCounter(encoders(tokenizer))(pieces) == expected(tokenizer, pieces)


def test_a_counter_bounds_its_memory(monkeypatch, byte_level_tokenizer) -> None:
    """It keeps the first words alone, and never a long one: the others are tokenized each time."""
    from recipe.conversations.pipeline import counting

    monkeypatch.setattr(counting, "CACHED_WORDS", 10)
    asked: list[str] = []
    real = encoders(byte_level_tokenizer)
    counter = TokenCounter(replace(real, inner=CountedModel(real.inner, asked)))
    words = [f"word{number}" for number in range(100)]
    for text in (" ".join(words), " ".join(["x" * 1000, *words])):
        asked.clear()
        pieces = render("vicuna_v1.1", [Message("user", text), Message("assistant", text)])
        assert counter(pieces) == expected(byte_level_tokenizer, pieces)
    assert len({text.strip() for text in asked} & set(words)) >= 90

"""Splitting loses nothing and is exact about the limit; the hold-out follows the content."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.split import Split, position, split_conversation
from recipe.conversations.templates import render
from recipe.conversations.tokens import IGNORED, encode, encoders

texts = st.text("ab é你</s>\n", max_size=60)


@given(
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=8), system=st.none() | texts, limit=st.integers(1, 400)
)
@settings(max_examples=150, deadline=None)
def test_no_turn_is_lost_and_no_sample_is_too_long(
    llama_tokenizer, byte_level_tokenizer, pairs: list[tuple[str, str]], system: str | None, limit: int
) -> None:
    head = [] if system is None else [Message("system", system)]
    turns = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    for tokenizer in (llama_tokenizer, byte_level_tokenizer):

        def count(messages: list[Message], tokenizer=tokenizer) -> tuple[int, int]:
            input_ids, labels = encode(tokenizer, render("vicuna_v1.1", messages))
            return len(input_ids), sum(label != IGNORED for label in labels)

        found = split_conversation([*head, *turns], TokenCounter(encoders(tokenizer)), "vicuna_v1.1", limit)
        samples, over_long = found.samples, found.dropped
        for sample in samples:
            assert (sample.tokens, sample.trained) == count(list(sample.messages))
            assert sample.tokens <= limit
            assert list(sample.messages[: len(head)]) == head
        alone = [list(turns[index : index + 2]) for index in range(0, len(turns), 2)]
        fitting = [pair for pair in alone if count([*head, *pair])[0] <= limit]
        assert over_long == len(alone) - len(fitting)
        parts = [message for sample in samples for message in sample.messages[len(head) :]]
        assert parts == [message for pair in fitting for message in pair]


@pytest.fixture(scope="module")
def counter(byte_level_tokenizer) -> TokenCounter:
    return TokenCounter(encoders(byte_level_tokenizer))


def test_samples_are_filled_as_far_as_they_go(counter) -> None:
    turns = [Message(("user", "assistant")[index % 2], f"text {index}") for index in range(20)]
    (whole,) = split_conversation(turns, counter, "vicuna_v1.1", 10_000).samples
    assert len(split_conversation(turns, counter, "vicuna_v1.1", whole.tokens).samples) == 1
    assert len(split_conversation(turns, counter, "vicuna_v1.1", whole.tokens - 1).samples) == 2


def test_the_last_pair_is_there_when_it_starts_a_sample(counter) -> None:
    """FastChat loses it."""
    turns = [Message(("user", "assistant")[index % 2], f"text {index}") for index in range(4)]
    (first,) = split_conversation(turns[:2], counter, "vicuna_v1.1", 10_000).samples
    found = split_conversation(turns, counter, "vicuna_v1.1", first.tokens)
    assert [list(sample.messages) for sample in found.samples] == [turns[:2], turns[2:]]
    assert found.dropped == 0


def test_an_over_long_answer_is_cut_at_a_sentence_or_its_pair_dropped(counter) -> None:
    answer = "One sentence. Another one.\nA line. " + "And so it goes on. " * 50
    turns = [
        Message("user", "Well?"),
        Message("assistant", answer),
        Message("user", "So?"),
        Message("assistant", "Yes."),
    ]
    short = [turns[0], Message("assistant", "One sentence. Another one.\nA line.")]
    limit = counter(render("vicuna_v1.1", short))[0] + 3
    found = split_conversation(turns, counter, "vicuna_v1.1", limit, truncate=True)
    assert [list(sample.messages) for sample in found.samples] == [short, turns[2:]]
    assert (found.dropped, found.truncated) == (0, 1)
    assert found.samples[0].tokens == limit - 3
    found = split_conversation(turns, counter, "vicuna_v1.1", limit)
    assert [list(sample.messages) for sample in found.samples] == [turns[2:]]
    assert (found.dropped, found.truncated) == (1, 0)


@pytest.mark.parametrize("turns", [("q " * 500, "a."), ("q", "no sentence ends here " * 90)])
def test_what_cannot_be_cut_is_dropped(counter, turns: tuple[str, str]) -> None:
    pair = [Message("user", turns[0]), Message("assistant", turns[1])]
    found = split_conversation(pair, counter, "vicuna_v1.1", 120, truncate=True)
    assert (found.samples, found.dropped, found.truncated) == ([], 1, 0)


def test_a_turn_of_50_megabytes_is_told_to_be_too_long_without_counting(counter) -> None:
    huge = [
        Message("user", "x"),
        Message("assistant", "a" * 50_000_000),
        Message("user", "y"),
        Message("assistant", "b"),
    ]
    found = split_conversation(huge, counter, "vicuna_v1.1", 2048, truncate=True)
    assert [list(sample.messages) for sample in found.samples] == [huge[2:]]
    assert found.dropped == 1


def test_untrained_answers_are_context_and_count_no_loss(counter, byte_level_tokenizer) -> None:
    turns = [
        Message("user", "one"),
        Message("assistant", "bad", trained=False),
        Message("user", "two"),
        Message("assistant", "good"),
    ]
    (sample,) = split_conversation(turns, counter, "vicuna_v1.1", 10_000).samples
    assert list(sample.messages) == turns
    input_ids, labels = encode(byte_level_tokenizer, render("vicuna_v1.1", turns))
    assert (sample.tokens, sample.trained) == (len(input_ids), sum(label != IGNORED for label in labels))
    trained_ids = [label for label in labels if label != IGNORED]
    alone = encode(byte_level_tokenizer, render("vicuna_v1.1", turns[2:]))[1]
    assert trained_ids == [label for label in alone if label != IGNORED]
    everything = [replace(turn, trained=True) for turn in turns]
    assert input_ids == encode(byte_level_tokenizer, render("vicuna_v1.1", everything))[0]


def test_a_sample_without_a_trained_answer_is_dropped(counter) -> None:
    turns = [Message(("user", "assistant")[index % 2], f"text {index}", trained=index > 2) for index in range(6)]
    system = Message("system", "s")
    limit = max(counter(render("vicuna_v1.1", [system, *turns[at : at + 2]]))[0] for at in (0, 2, 4))
    found = split_conversation([system, *turns], counter, "vicuna_v1.1", limit)
    expected = [[system, replace(turns[2], trained=True), turns[3]], [system, *turns[4:]]]
    assert [list(sample.messages) for sample in found.samples] == expected
    assert (found.dropped, found.untrained) == (0, 1)
    bad = [turns[0], replace(turns[1], content="A sentence. " * 400)]
    assert split_conversation(bad, counter, "vicuna_v1.1", 200, truncate=True) == Split(dropped=1)


def conversation(text: str, name: str = "x") -> Conversation:
    return Conversation(name, (Message("user", text), Message("assistant", "a")), "test")


def test_the_place_follows_content_and_seed_and_nothing_else() -> None:
    place = position(conversation("q"), seed=0)
    assert place == position(conversation(" Q ", "another id"), seed=0)
    assert place != position(conversation("r"), seed=0)
    assert place != position(conversation("q"), seed=1)


def test_places_are_spread_evenly() -> None:
    places = [position(conversation(str(number)), seed=0) for number in range(4000)]
    assert all(0 <= place < 1 for place in places)
    assert sum(place < 0.1 for place in places) == pytest.approx(400, abs=60)


def test_parts_of_one_sharegpt_conversation_stand_together() -> None:
    assert position(conversation("q", "QWJhYvA_0"), 0) == position(conversation("r", "QWJhYvA_14"), 0)
    assert position(conversation("q", "QWJhYvA_0"), 0) != position(conversation("r", "QWJhYvB_0"), 0)
    assert position(conversation("q", "identity_0"), 0) != position(conversation("r", "identity_1"), 0)

"""The account is balanced whatever comes in."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations import identity
from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.cleaning.filters import Filters
from recipe.conversations.formats import detect
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.prepare import Preparation
from recipe.conversations.readers.json_stream import Rejected
from recipe.conversations.tokens import encoders
from recipe.core.config import Corpus

SHAREGPT_LIKE = (
    "fastchat_dummy_conversation.json",
    "gitcloner_dummy_cn.json",
    "gitcloner_dummy_en.json",
    "gitcloner_test.json",
    "lf_glaive_toolcall_en_demo.json",
    "lf_kto_en_demo.json",
)


@pytest.fixture(scope="module")
def counter(byte_level_tokenizer) -> TokenCounter:
    return TokenCounter(encoders(byte_level_tokenizer))


def check(preparation: Preparation, items: list[Conversation | Rejected]) -> None:
    """What the samples hold, plus what has a reason, is what came in; counted here from the items themselves."""
    kept_conversations = kept_turns = 0
    for item in items:
        if prepared := preparation.take(item):
            kept_conversations += 1
            kept_turns += prepared.turns
            turns = sum(message.role != "system" for sample in prepared.samples for message in sample.messages)
            assert prepared.turns == turns + (prepared.conversation.messages[0].role == "system")
    accounts = preparation.accounts.values()
    assert all(account.balanced() for account in accounts)
    assert sum(account.conversations for account in accounts) == len(items)
    assert sum(account.turns for account in accounts) == sum(
        len(item.messages) + item.passed_over for item in items if isinstance(item, Conversation)
    )
    assert sum(account.kept_conversations for account in accounts) == kept_conversations
    assert sum(account.kept_turns for account in accounts) == kept_turns


@pytest.mark.parametrize("name", SHAREGPT_LIKE)
@pytest.mark.parametrize("limit", [96, 2048])
def test_kept_and_dropped_add_up_on_real_files(assets: Path, counter, name: str, limit: int) -> None:
    preparation = Preparation(counter, Filters(Corpus(max_length=limit)))
    check(preparation, list(detect.read(assets / "conversations" / name)))


roles = st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool"])
messages = st.builds(Message, roles, st.sampled_from(["", " ", "x", "y", "long " * 40]))
raw = st.builds(
    Conversation, st.just("x"), st.lists(messages, max_size=7).map(tuple), st.sampled_from(["a.json", "b.json"])
)
rejected = st.just(Rejected("b.json", 0, Drop.NOT_JSON, ""))


@given(items=st.lists(raw | rejected, max_size=8), limit=st.integers(60, 300))
@settings(deadline=None)
def test_kept_and_dropped_add_up_on_anything(counter, items: list[Conversation | Rejected], limit: int) -> None:
    check(Preparation(counter, Filters(Corpus(max_length=limit))), items)


def test_the_identity_conversations_are_all_kept(counter) -> None:
    found = identity.training("Ada", "Lovelace Works")
    preparation = Preparation(counter, Filters(Corpus(max_length=2048)))
    check(preparation, [*found])
    assert preparation.accounts[identity.SOURCE].kept_conversations == len(found)


def test_untrained_conversations_have_a_reason_of_their_own(counter) -> None:
    preparation = Preparation(counter, Filters(Corpus()))
    bad = Message("assistant", "a", trained=False)
    assert preparation.take(Conversation("1", (Message("system", "s"), Message("user", "q"), bad), "a")) is None
    account = preparation.accounts["a"]
    assert account.balanced()
    assert account.dropped_conversations == {Drop.UNTRAINED: 1}
    assert +account.dropped_turns == {Drop.UNTRAINED_PAIR: 2, Drop.ORPHAN_SYSTEM: 1}


def test_over_long_pairs_and_what_stood_around_them_are_accounted_for(counter) -> None:
    preparation = Preparation(counter, Filters(Corpus(max_length=60)))
    system, question, answer = Message("system", "s"), Message("user", "q"), Message("assistant", "a " * 99)
    short = Message("assistant", "a")
    assert preparation.take(Conversation("1", (system, question, answer), "a")) is None
    kept = preparation.take(Conversation("2", (system, question, answer, question, short), "b"))
    assert kept is not None
    assert [sample.messages for sample in kept.samples] == [(system, question, short)]
    first, second = (preparation.accounts[source].as_dict() for source in "ab")
    assert first["turns"] == {"read": 3, "kept": 0, "dropped": {"orphan_system": 1, "over_long_pair": 2}, "changed": {}}
    assert first["conversations"] == {"read": 1, "kept": 0, "dropped": {"all_over_long": 1}}
    assert second["turns"] == {"read": 5, "kept": 3, "dropped": {"over_long_pair": 2}, "changed": {}}

"""What is taught about the model, and that it is not what is asked afterwards."""

import re
import unicodedata

from recipe.conversations import identity
from recipe.conversations.cleaning.html import clean_text
from recipe.conversations.cleaning.roles import fingerprint, in_turn


def normalised(text: str) -> str:
    return re.sub(r"\W", "", unicodedata.normalize("NFKC", text).casefold())


def questions() -> list[str]:
    found = identity.training("Ada", "Lovelace Works")
    return [message.content for conversation in found for message in conversation.messages if message.role == "user"]


def is_chinese(text: str) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", text))


def test_held_out_questions_are_worded_like_no_training_question() -> None:
    trained, held_out = set(map(normalised, questions())), set(map(normalised, identity.unseen_questions()))
    assert trained.isdisjoint(held_out)
    assert len(held_out) == len(identity.unseen_questions()) >= 12


def test_enough_wordings_in_both_languages() -> None:
    first = {
        normalised(conversation.messages[0].content) for conversation in identity.training("Ada", "Lovelace Works")
    }
    assert len(first) >= 60
    assert sum(map(is_chinese, first)) >= 20
    assert any(map(is_chinese, identity.unseen_questions()))


def test_every_conversation_ends_with_the_name() -> None:
    found = identity.training("Ada", "Lovelace Works")
    for conversation in found:
        assert "Ada" in conversation.messages[-1].content
        assert not re.search("[{}]", "".join(message.content for message in conversation.messages))
        about_itself = [message for message in conversation.messages if "Lovelace Works" in message.content]
        assert all("Ada" in message.content for message in about_itself)
    assert sum(len(conversation.messages) > 2 for conversation in found) >= 8


def test_a_name_with_braces_is_only_a_name() -> None:
    assert any("{0} {x" in m.content for c in identity.training("{0} {x", "Us") for m in c.messages)


def test_they_pass_cleaning_unchanged_and_are_no_duplicates() -> None:
    found = identity.training("Ada", "Lovelace Works")
    for conversation in found:
        assert in_turn(conversation.messages) == (list(conversation.messages), {})
        assert all(clean_text(message.content) == message.content for message in conversation.messages)
    assert len({fingerprint(conversation.messages) for conversation in found}) == len(found)
    assert len({conversation.id for conversation in found}) == len(found)

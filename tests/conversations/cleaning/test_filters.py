"""What a user may ask for beyond clean text."""

import pytest

from recipe.conversations.cleaning import filters
from recipe.conversations.cleaning.accounting import Change, Drop
from recipe.conversations.cleaning.filters import Filters, language, placeholders
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.prepare import Preparation
from recipe.conversations.readers.json_stream import Rejected
from recipe.conversations.tokens import encoders
from recipe.core.config import Corpus, Source
from recipe.core.errors import RecipeError, UsageError


def pair(question: str, answer: str = "fine") -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


@pytest.mark.parametrize(
    ("rules", "prompts", "text", "dropped"),
    [
        (Corpus(blocked_words=("openai", "敏感词")), (), "Is OpenAI here?", True),
        (Corpus(blocked_words=("openai", "敏感词")), (), "这是敏感词吗", True),
        (Corpus(blocked_words=("openai", "敏感词")), (), "myopenaikey", False),
        (Corpus(repeated_digits=9), (), "id 111111111", True),
        (Corpus(repeated_digits=9), (), "id 11111111 and 123456789", False),
        (Corpus(languages_keep=("en",)), (), "This is certainly English text.", False),
        (Corpus(languages_keep=("en",)), (), "这肯定是中文，不是别的语言。", True),
        (Corpus(languages_skip=("zh",)), (), "这肯定是中文，不是别的语言。", True),
        (Corpus(), ("What is the capital of France?",), "what is the capital of  FRANCE", True),
        (Corpus(), ("What is the capital of France?",), "What is the capital of France and Italy?", False),
        (Corpus(), ("a b c d e f g h i j k l m n",), "so: B c d e f g h i j k, l m n!", True),
        (Corpus(), ("a b c d e f g h i j k l m n",), "b c d e f g h i j k l m", False),
        (Corpus(), ("请用一句话解释什么是量子计算机的工作原理",), "你好，请用一句话解释什么是量子计算机", True),
    ],
)
def test_what_is_left_out(rules: Corpus, prompts: tuple[str, ...], text: str, dropped: bool) -> None:
    messages = pair(text)
    assert (Filters(rules, prompts).reason(messages, language(messages)) is not None) == dropped


@pytest.mark.parametrize(
    ("rules", "text", "expected", "changes"),
    [
        (Corpus(replace=(r"(?i)chat ?gpt => Ada", "Ada's => her")), "I am Chat GPT", "I am Ada", [Change.REPLACED]),
        (Corpus(replace=(r"\{\{name\}\} => Ada",)), "I am {{name}}", "I am Ada", [Change.REPLACED]),
        (Corpus(replace=(r"(\w+)@\w+ => \1",)), "me@here", "me", [Change.REPLACED]),
        (Corpus(script="t2s"), "鼠標與軟體 abc", "鼠标与软体 abc", [Change.SCRIPT]),
        (Corpus(script="s2t"), "头发和发展", "頭髮和發展", [Change.SCRIPT]),
        (Corpus(script="t2s"), "no Chinese", "no Chinese", []),
        (Corpus(), "鼠標", "鼠標", []),
    ],
)
def test_what_changes_a_text(rules: Corpus, text: str, expected: str, changes: list[Change]) -> None:
    assert Filters(rules).change(text) == (expected, changes)


@pytest.mark.parametrize("rule", ["no arrow", " => x", "( => x", r"a => \1"])
def test_a_rule_that_is_none_is_one_sentence(rule: str) -> None:
    with pytest.raises(UsageError, match="the replacement rule"):
        Filters(Corpus(replace=(rule,)))


@pytest.mark.parametrize(
    ("seconds", "rule", "text", "sentence"),
    [
        (
            0.5,
            "(a|aa)+$ => b",
            "a" * 60 + "!",
            r"the replacement rule \(a\|aa\)\+\$ => b, .* of 61 .* takes more",
        ),
        (60.0, "x* => " + "y" * 1000, "z" * 200_000, "makes more than 67,108,864 characters of it"),
    ],
)
def test_a_rule_has_a_limit_of_time_and_size(monkeypatch, seconds: float, rule: str, text: str, sentence: str) -> None:
    monkeypatch.setattr(filters, "RULE_SECONDS", seconds)
    with pytest.raises(RecipeError, match=sentence):
        Filters(Corpus(replace=(rule,))).change(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("I am {{name}}, made by {{ author }}.", ["name", "author"]),
        ("plain {braces}, {{a b}} and {{{{", []),
        ("```html\n<p>{{item}}</p>\n``` and `{{code}}`", []),
    ],
)
def test_placeholders_outside_code_are_found(text: str, names: list[str]) -> None:
    assert placeholders(text) == names


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("How do I sort a list in Python?", "en"),
        ("如何用一句话解释量子计算？", "zh"),
        ("Wie heißt die Hauptstadt von Frankreich?", "de"),
        ("```python\nimport os\n```\nQu'est-ce que ce programme fait exactement ?", "fr"),
        ("12345 !!!", ""),
        ("```\ncode alone\n```", ""),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language([Message("system", "You are helpful."), Message("user", text)]) == code


@pytest.fixture(scope="module")
def counter(byte_level_tokenizer) -> TokenCounter:
    return TokenCounter(encoders(byte_level_tokenizer))


EVERYTHING = Corpus(
    max_length=200,
    rounds=1,
    over_long="truncate",
    duplicates="near",
    script="t2s",
    replace=("colour => color",),
    blocked_words=("blocked",),
    languages_skip=("zh",),
    repeated_digits=5,
)
CASES = [
    ("a", pair("Which colour is the sky?"), None),
    ("a", pair("This is a blocked word."), Drop.BLOCKED_WORD),
    ("a", pair("这是一个中文问题，应该被跳过。"), Drop.LANGUAGE),
    ("a", pair("call 55555 now please"), Drop.REPEATED_DIGITS),
    ("a", pair("who are you"), Drop.CONTAMINATED),
    ("a", [*pair("First question of two?"), *pair("second")], None),
    ("a", [], Drop.EMPTY),
    ("a", pair("long " * 300), Drop.ALL_OVER_LONG),
    ("a", pair("Tell me.", "A sentence. " * 200), None),
]


def test_every_step_is_counted_and_the_sums_hold(counter: TokenCounter) -> None:
    preparation = Preparation(counter, Filters(EVERYTHING, ("Who are you?",)))
    for number, (source, messages, reason) in enumerate(CASES):
        before = preparation.accounts[source].dropped_conversations.copy()
        prepared = preparation.take(Conversation(str(number), tuple(messages), source, passed_over=number % 3))
        assert (prepared is None) == (reason is not None)
        assert preparation.accounts[source].dropped_conversations - before == ({reason: 1} if reason else {})
        assert preparation.accounts[source].balanced()
    preparation.take(Rejected("a", 0, Drop.NOT_JSON, ""))
    account = preparation.accounts["a"]
    assert account.balanced()
    assert account.dropped_turns[Drop.LATER_ROUND] == 2
    assert account.changed_turns[Change.TRUNCATED] == 1
    assert account.changed_turns[Change.REPLACED] == 1


def test_a_share_of_a_source_is_drawn_by_id(counter: TokenCounter) -> None:
    preparation = Preparation(counter, Filters(Corpus()), Source(share=0.5))
    for number in range(100):
        preparation.take(Conversation(str(number), tuple(pair(f"What is number {number}?")), "sampled"))
    sampled = preparation.accounts["sampled"]
    assert sampled.balanced()
    assert 30 < sampled.kept_conversations < 70
    assert sampled.dropped_conversations[Drop.SAMPLED_OUT] == 100 - sampled.kept_conversations


def test_roles_out_of_turn_are_dropped_where_no_repair_is_wanted(counter: TokenCounter) -> None:
    preparation = Preparation(counter, Filters(Corpus(max_length=400, repair_roles=False)))
    assert preparation.take(Conversation("1", (Message("assistant", "hi"), *pair("q")), "a")) is None
    assert preparation.take(Conversation("2", tuple(pair("q")), "a")) is not None
    assert preparation.accounts["a"].dropped_conversations == {Drop.WRONG_ORDER: 1}
    assert preparation.accounts["a"].balanced()


def test_html_stays_where_that_is_wanted(counter: TokenCounter) -> None:
    messages = tuple(pair("q", "<p>a <b>word</b></p>"))
    kept = Preparation(counter, Filters(Corpus(max_length=400, html=False))).take(Conversation("1", messages, "a"))
    assert kept is not None
    assert kept.conversation.messages == messages

"""The rendered text, against prompts that FastChat rendered and those of the templates' sources."""

import json
from pathlib import Path

import pytest

from recipe.conversations.messages import Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.split import split_conversation
from recipe.conversations.templates import Span, Special, get, names, render, stop_string, stop_token
from recipe.conversations.tokens import IGNORED, check_template, encode, encoders, end_ids
from recipe.core.errors import RecipeError, UsageError

TURNS = ("Hello!", "Hi!", "How are you?")


def say(*texts: str, system: str | None = None) -> list[Message]:
    """Messages: user, assistant, user, ... after an optional system message."""
    start = [] if system is None else [Message("system", system)]
    return start + [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def as_text(pieces) -> str:
    """The text with LLaMA's names for BOS and EOS."""
    return "".join(piece.text.replace("<bos>", "<s>").replace("<eos>", "</s>") for piece in pieces)


# name -> system message, prompt of TURNS; sources in recipe/conversations/templates/published.py
PUBLISHED = {
    "vicuna_v0": (
        None,
        "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.\n### Human: Hello!\n### Assistant: Hi!\n"
        "### Human: How are you?\n### Assistant:",
    ),
    "alpaca_short": (
        None,
        "<s>### Instruction:\nHello!\n\n### Response:\nHi!</s>### Instruction:\nHow are you?\n\n### Response:\n",
    ),
    "llama-2": (
        "Be brief.",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello! [/INST] Hi! </s><s>[INST] How are you? [/INST]",
    ),
    "llama-3": (
        "Be brief.",
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "chatml": (
        "Be brief.",
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
        "Hi!<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "zephyr": (
        "Be brief.",
        "<s><|system|>\nBe brief.</s>\n<|user|>\nHello!</s>\n<|assistant|>\nHi!</s>\n<|user|>\nHow are you?</s>\n"
        "<|assistant|>\n",
    ),
}


@pytest.mark.parametrize("name", ["vicuna_v1.1", "alpaca", "llama-2", "llama-3"])
def test_prompts_are_what_fastchat_renders(assets: Path, name: str) -> None:
    golden = json.loads((assets / "golden" / "prompts.json").read_text(encoding="utf-8"))[name]["prompt"]
    system = "You are a helpful, respectful and honest assistant." if name == "llama-2" else None
    rendered = as_text(render(name, say(*TURNS, system=system), open_turn=True))
    # FastChat leaves the first BOS to the tokenizer, but writes LLaMA 3's.
    assert rendered == f"<s>{golden.removeprefix('<|begin_of_text|>')}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_are_those_of_the_source(name: str) -> None:
    system, prompt = PUBLISHED[name]
    assert as_text(render(name, say(*TURNS, system=system), open_turn=True)) == prompt


def test_chatml_gives_the_ids_of_smollm2s_own_template(smollm2_tokenizer, smollm2_template: str) -> None:
    messages = say(*TURNS, system="Be brief.")
    plain = [{"role": message.role, "content": message.content} for message in messages]
    expected = smollm2_tokenizer.apply_chat_template(plain, chat_template=smollm2_template, add_generation_prompt=True)
    assert encode(smollm2_tokenizer, render("chatml", messages, open_turn=True))[0] == expected


TRAINED = {
    "vicuna_v1.1": " {}</s>",
    "vicuna_v0": " {}\n###",
    "alpaca": " {}</s>",
    "alpaca_short": "{}</s>",
    "llama-2": " {} </s>",
    "llama-3": "{}<|eot_id|>",
    "chatml": "{}<|im_end|>",
    "zephyr": "{}</s>",
}


def test_there_are_these_templates() -> None:
    assert names() == list(TRAINED)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_trained_are_the_answers_with_their_end_marks(name: str, system: str | None) -> None:
    pieces = render(name, say("one", "uno", "two", "dos", system=system))
    assert as_text(piece for piece in pieces if piece.trained) == "".join(map(TRAINED[name].format, ("uno", "dos")))
    assert pieces[0] == Special("bos", False)
    assert pieces[-1].trained


@pytest.mark.parametrize("name", names())
def test_a_prompt_is_the_start_of_the_sample(name: str) -> None:
    pieces = render(name, say("one", "uno", "two", "dos"))
    assert pieces[: len(render(name, say("one"), True))] == render(name, say("one"), True)
    assert pieces[: len(render(name, say("one", "uno", "two"), True))] == render(name, say("one", "uno", "two"), True)


def test_the_space_before_an_answer_is_trained() -> None:
    pieces = render("vicuna_v1.1", say("one", "uno"))
    assert [piece for piece in pieces if piece.trained] == [Span(" uno", True), Special("eos", True)]


def test_a_system_message_replaces_the_templates_own() -> None:
    assert as_text(render("vicuna_v1.1", say("q", "a", system="Be brief."))) == "<s>Be brief. USER: q ASSISTANT: a</s>"
    assert as_text(render("vicuna_v1.1", say("q", "a", system=""))) == "<s>USER: q ASSISTANT: a</s>"
    assert as_text(render("vicuna_v0", say("q", "a", system=""))) == "<s>### Human: q\n### Assistant: a\n###"


def test_what_is_stripped() -> None:
    """LLaMA 3 strips every message; elsewhere an answer is stripped where it follows a line break."""
    messages = say("\n q ", "\n a ", system=" s\n")
    assert as_text(render("llama-2", messages)) == "<s>[INST] <<SYS>>\n s\n\n<</SYS>>\n\n\n q  [/INST] \n a  </s>"
    assert "user\n\n q <|im_end|>" in as_text(render("chatml", messages))
    assert "assistant\na<|im_end|>" in as_text(render("chatml", messages))
    assert "<|end_header_id|>\n\nq<|eot_id|>" in as_text(render("llama-3", messages))
    assert "<|end_header_id|>\n\ns<|eot_id|>" in as_text(render("llama-3", messages))


@pytest.mark.parametrize(
    ("messages", "open_turn"),
    [
        ([], False),
        (say("q"), False),
        (say("q", "a"), True),
        (say("q", "a")[::-1], False),
        ([Message("user", "q"), Message("user", "q"), Message("assistant", "a")], True),
        ([Message("user", "q"), Message("system", "s")], False),
    ],
)
def test_messages_that_do_not_alternate_are_refused(messages: list[Message], open_turn: bool) -> None:
    with pytest.raises(RecipeError, match="expected user and assistant in turn"):
        render("vicuna_v1.1", messages, open_turn)


def test_an_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no template 'vicuna'; expected one of vicuna_v1\.1, .*zephyr, or the path"):
        render("vicuna", say("q", "a"))


def test_a_base_without_the_special_tokens_is_refused(llama_tokenizer) -> None:
    with pytest.raises(RecipeError, match=r"no special token <\|im_end\|>.*fit this base: vicuna_v1\.1, .*zephyr"):
        check_template(llama_tokenizer, "chatml")
    check_template(llama_tokenizer, "zephyr")


def test_generation_stops_at_the_end_mark_and_at_eos(llama3_tokenizer, byte_level_tokenizer, llama_tokenizer) -> None:
    marks = {name: (stop_token(name), stop_string(name)) for name in names()}
    assert marks.pop("vicuna_v0") == (None, "\n###")
    assert marks.pop("chatml") == ("<|im_end|>", None)
    assert marks.pop("llama-3") == ("<|eot_id|>", None)
    assert set(marks.values()) == {("eos", None)}
    tokens = llama3_tokenizer.convert_ids_to_tokens(end_ids(llama3_tokenizer, "llama-3"))
    assert tokens == ["<|eot_id|>", "<|end_of_text|>"]
    assert end_ids(byte_level_tokenizer, "chatml") == [byte_level_tokenizer.eos_token_id]
    assert end_ids(llama_tokenizer, "vicuna_v0") == [llama_tokenizer.eos_token_id]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("fixture", ["llama_tokenizer", "metaspace_tokenizer", "byte_level_tokenizer"])
def test_samples_of_every_template_are_counted_exactly(name: str, fixture: str, request) -> None:
    """A sample's length is the sum of its pairs', each counted by itself."""
    tokenizer = request.getfixturevalue(fixture)
    if not set(get(name).special_tokens) <= encoders(tokenizer).special.keys():
        tokenizer = request.getfixturevalue("llama3_tokenizer" if name == "llama-3" else "byte_level_tokenizer")
    messages = say(" one\n", "uno", "Human: x", "", "你好", "\n\nfin ", system="Be brief.")
    (sample,) = split_conversation(messages, TokenCounter(encoders(tokenizer)), name, 10_000).samples
    input_ids, labels = encode(tokenizer, render(name, messages))
    assert (sample.tokens, sample.trained) == (len(input_ids), sum(label != IGNORED for label in labels))

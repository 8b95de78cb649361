"""Texts and choices as samples: nothing is lost, every published form is read, a bad line is named."""

import json

import pytest

from recipe.core.errors import RecipeError
from recipe.evaluation import choices, texts
from recipe.evaluation.choices import Question
from recipe.evaluation.texts import encode_path, encode_texts, passages, probe, read_text
from tests.conversations.conftest import llama_tokenizer, sentencepiece_model  # noqa: F401

MMLU = {"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": 1}
FORMS = [
    MMLU,
    MMLU | {"answer": "B"},
    MMLU | {"answer": "4"},
    {"question": "2 + 2?", "choices": {"text": ["3", "4", "5"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"ctx": "2 + 2?", "endings": ["3", "4", "5"], "label": "1"},
]


def test_passages_lose_nothing_but_blank_lines():
    text = "\n\n".join("word " * (n % 400) for n in range(1, 900, 37)) + "\n\n" + "x" * 5000
    found = passages(text, 1000)
    assert max(map(len, found)) <= 1000
    assert "".join("".join(found).split()) == "".join(text.split())


def test_the_probe_is_the_same_text_every_time():
    found, digest = probe()
    assert len(found) == texts.PROBE_PASSAGES and len(digest) == 64 and probe() == (found, digest)


def test_a_text_is_scored_whole(llama_tokenizer):  # noqa: F811
    (sample,) = encode_texts(llama_tokenizer, ["Grüße, world"], 64)
    assert list(sample.input_ids[1:]) == list(sample.labels[1:]) and sample.bytes == 14
    assert llama_tokenizer.decode(sample.input_ids, skip_special_tokens=True).strip() == "Grüße, world"


@pytest.mark.parametrize("record", FORMS)
def test_every_published_form_is_read(tmp_path, record):
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps(record) + "\n\n")
    assert choices.read(file) == [Question("2 + 2?", ("3", "4", "5"), 1)]


@pytest.mark.parametrize(
    "line",
    ["[]", "{", "{}", json.dumps(MMLU | {"answer": "7"}), json.dumps(MMLU | {"choices": [" ", "4"]}), "[" * 99999],
)
def test_a_line_in_another_form_is_named(tmp_path, line):
    file = tmp_path / "set.jsonl"
    file.write_text(f"{json.dumps(MMLU)}\n{line}\n")
    with pytest.raises(RecipeError, match="line 2"):
        choices.read(file)


@pytest.mark.parametrize("read", [choices.read, read_text])
def test_no_file_and_an_empty_one_are_one_sentence(tmp_path, read):
    with pytest.raises(RecipeError, match="there is no file"):
        read(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(RecipeError, match=r"holds no question|is empty"):
        read(tmp_path / "empty")


def test_only_the_choice_is_scored(llama_tokenizer):  # noqa: F811
    question = Question("Which colour is the sky?", ("The sky is blue.", "green"), 0)
    scored = choices.samples(llama_tokenizer, "vicuna_v1.1", [question], 200)
    for sample, choice in zip(scored, question.choices, strict=True):
        trained = [label for label in sample.labels if label != -100]
        assert llama_tokenizer.decode(trained).strip() == choice and llama_tokenizer.eos_token_id not in trained


def test_the_likeliest_choice_wins_plainly_and_by_byte():
    questions = [Question("a", ("long text", "x"), 0), Question("b", ("x", "yy", "zzz"), 2)]
    assert choices.hits(questions, [9.0, 8.0, 3.0, 2.0, 1.0], [9, 1, 1, 2, 3]) == ([0, 1], [1, 1])


def test_a_text_that_exceeds_a_pack_is_cut_and_not_lost(llama_tokenizer):  # noqa: F811
    text = "The quick brown fox jumps over the lazy dog. " * 40
    samples = encode_texts(llama_tokenizer, [text], 100)
    assert len(samples) > 3 and max(len(sample.input_ids) for sample in samples) <= 100
    assert sum(sample.bytes for sample in samples) == len(text)


def test_of_a_conversation_file_only_the_answers_are_scored(llama_tokenizer, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "talk.jsonl"
    long = [{"role": role, "content": f"{role} says this. " * 30} for role in ("user", "assistant")]
    turns = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Blue."}]
    lines = [{"messages": turns}, {"messages": turns + long}, {"messages": long}, {"messages": turns[:1]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = encode_path(file, llama_tokenizer, "vicuna_v1.1", 300)
    assert [sample.bytes for sample in samples] == [5, 5]
    scored = [int(label) for label in samples[0].labels if label != -100]
    assert llama_tokenizer.decode(scored, skip_special_tokens=True).strip() == "Blue."
    assert "1 conversations were cut to 300 tokens, 2 records had nothing to score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("odd.jsonl", '{"a": 1}\n', "no known format"),
        ("asked.jsonl", '{"messages": [{"role": "user", "content": "Hm?"}]}\n', "holds nothing that can be scored"),
        ("empty.jsonl", "", "odd|empty|no record"),
    ],
)
def test_a_conversation_file_without_answers_is_one_sentence(llama_tokenizer, tmp_path, name, content, message):  # noqa: F811
    (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError, match=message):
        encode_path(tmp_path / name, llama_tokenizer, "vicuna_v1.1", 120)


def test_a_choice_that_exceeds_a_pack_is_one_sentence(llama_tokenizer):  # noqa: F811
    with pytest.raises(RecipeError, match=r"expected at most train\.micro_batch_tokens = 20"):
        choices.samples(llama_tokenizer, "vicuna_v1.1", [Question("Which colour?", ("blue", "green"), 0)], 20)


def test_a_choice_without_tokens_is_one_sentence():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    known = {letter: number for number, letter in enumerate(["<s>", "</s>", *map(chr, range(32, 127))])}
    ascii_only = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(known, [])), bos_token="<s>", eos_token="</s>"
    )
    with pytest.raises(RecipeError, match="has no tokens"):
        choices.samples(ascii_only, "vicuna_v1.1", [Question("Which?", ("blue", "蓝"), 0)], 500)

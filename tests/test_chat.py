"""Talking to a model: one shot, a conversation, a terminal that a model cannot take over."""

import io
import json
import sys

import pytest
import torch

from recipe import chat, merge
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids
from recipe.core.cli import entry
from recipe.model.load import load_base, load_tokenizer


@pytest.fixture
def trained(trained_run):
    config, run = trained_run
    return config, run.folder


@pytest.fixture
def talk(tiny_base):
    loaded = load_base(tiny_base, "fp32", torch.device("cpu"))
    return chat.Chat(loaded, load_tokenizer(tiny_base), "vicuna_v1.1", 8, 0.0)


def test_one_shot_from_a_run_and_from_its_merged_folder(trained, capsys):
    config, folder = trained
    assert chat.main(["--run", str(folder), "--prompt", "Which colour is thing 3?", "--max-new-tokens", "8"]) == 0
    from_run = capsys.readouterr().out
    assert from_run.strip()
    merge.run(config, folder, "hf")
    arguments = ["--model", str(folder / "merged"), "--precision", "int8", "--max-new-tokens", "8", "--json"]
    assert chat.main([*arguments, "--prompt", "Which colour is thing 3?"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["question"] == "Which colour is thing 3?" and out["answer"]


def test_the_second_question_sees_the_first(talk):
    first = talk.say("Which colour is the sky?")
    assert talk.messages == [Message("user", "Which colour is the sky?"), Message("assistant", first)]
    talk.say("And the grass?")
    prompt = talk.fit([*talk.messages[:2], Message("user", "And the grass?")])
    text = talk.tokenizer.decode(prompt)
    assert "Which colour is the sky?" in text and text.endswith("ASSISTANT:")


def test_the_oldest_turns_go_where_the_context_ends(talk):
    turns = [Message("user", "old " * 200), Message("assistant", "x"), Message("user", "new question")]
    prompt = talk.fit(list(turns))
    assert prompt == prompt_ids(talk.tokenizer, "vicuna_v1.1", turns[2:])


def test_a_question_longer_than_the_context_is_one_sentence(talk, capsys):
    chat.stream(talk, "word " * 2000)
    said = capsys.readouterr().err
    assert said.startswith("error: the question has") and "leaves 504" in said


def test_a_model_cannot_move_the_cursor(talk, capsys, monkeypatch):
    hostile = "\x1b[2J\x1b]0;owned\x07done\u202e"
    monkeypatch.setattr(chat.Chat, "say", lambda self, text, on_text: on_text(hostile))
    chat.stream(talk, "hi")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out and r"\x1b[2J" in out and "done" in out


def test_a_conversation_over_a_pipe(talk, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Which colour is the sky?\n\n/new\nWho are you?\n"))
    chat.loop(talk)
    assert [message.content for message in talk.messages if message.role == "user"] == ["Who are you?"]
    assert capsys.readouterr().out.count("\n") >= 2


def test_ctrl_c_ends_the_answer_and_not_the_chat(talk, capsys, monkeypatch):
    def interrupted(self, text, on_text):
        on_text("half an ans")
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.Chat, "say", interrupted)
    chat.stream(talk, "hi")
    assert "half an ans (stopped)" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--run", "a", "--model", "b"]])
def test_neither_or_both_is_a_usage_error(arguments, capsys):
    assert entry(lambda: chat.main(arguments)) == 2
    assert "either a run" in capsys.readouterr().err


def test_sampling_is_possible_and_greedy_is_the_default(talk):
    assert talk.say("Hello") == chat.Chat(talk.model, talk.tokenizer, "vicuna_v1.1", 8, 0.0).say("Hello")
    torch.manual_seed(0)
    sampled = {chat.Chat(talk.model, talk.tokenizer, "vicuna_v1.1", 8, 2.0).say("Hello") for _ in range(4)}
    assert len(sampled) > 1

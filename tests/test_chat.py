"""Chat: one question, a conversation, commands, and a terminal that a model cannot take over."""

import io
import json
import os
import pty
import shutil
import sys
from pathlib import Path

import pytest
import torch

from recipe import chat, merge, serve
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.text import printable
from recipe.model.load import load_base, load_tokenizer
from recipe.serving.engine import Engine, Sampling
from recipe.serving.session import Session

ROOT = Path(__file__).parents[1]


@pytest.fixture
def trained(trained_run):
    config, run = trained_run
    return config, run.folder


@pytest.fixture(scope="module")
def merged(trained_once):
    folder = Path(trained_once.runs) / "tiny" / "latest"
    merge.run(trained_once, folder, "hf")
    return folder / "merged"


@pytest.fixture
def engine(tiny_base):
    loaded = load_base(tiny_base, "fp32", torch.device("cpu"))
    return Engine(loaded, load_tokenizer(tiny_base), "vicuna_v1.1", models=("model",))


@pytest.fixture
def talk(engine):
    return Session(engine, "model", 8, Sampling())


def test_one_shot_from_run_compare_and_merged(trained, capsys):
    config, folder = trained
    question = ["--prompt", "Which colour is thing 3?", "--max-new-tokens", "8"]
    assert chat.main(["--run", str(folder), *question]) == 0
    from_run = capsys.readouterr().out
    assert from_run.strip()
    assert chat.main(["--run", str(folder), *question, "--compare", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)["answers"]
    assert list(both) == ["base", "tuned"] and printable(both["tuned"], keep="\n\t") == from_run.strip("\n")
    merge.run(config, folder, "hf")
    arguments = ["--model", str(folder / "merged"), "--precision", "int8", "--json"]
    assert chat.main([*arguments, *question]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["question"] == "Which colour is thing 3?" and out["answer"]
    weights = next((folder / "merged").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert entry(lambda: chat.main(["--model", str(folder / "merged"), "--precision", "fp16", *question])) == 1
    assert "was altered" in capsys.readouterr().err


@pytest.mark.parametrize("command", [chat, serve])
@pytest.mark.parametrize(
    "damage", ["no weights", "half the weights", "no manifest", "half the manifest", "no tokenizer"]
)
def test_a_half_written_merged_folder_is_one_sentence(merged, tmp_path, capsys, command, damage):
    folder = tmp_path / "merged"
    shutil.copytree(merged, folder)
    part, _, kind = damage.partition(" ")
    name = {"weights": "model.safetensors", "manifest": "manifest.json", "tokenizer": "tokenizer.json"}[
        kind.split()[-1]
    ]
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if part == "half":
        (folder / name).write_bytes(content[: len(content) // 2])
    assert entry(lambda: command.main(["--model", str(folder), *(["--prompt", "hi"] if command is chat else [])])) == 1
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and name.partition(".")[0] in error and "Traceback" not in error, error


def test_altered_adapter_is_refused(trained, capsys):
    _, folder = trained
    adapter = folder / "adapter" / "adapter_model.safetensors"
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    assert entry(lambda: chat.main(["--run", str(folder), "--prompt", "hi"])) == 1
    assert "was altered" in capsys.readouterr().err


def test_the_second_question_sees_the_first(talk):
    first = talk.ask("Which colour is the sky?")
    assert talk.messages == [Message("user", "Which colour is the sky?"), Message("assistant", first)]
    request = talk.fit([*talk.messages, Message("user", "And the grass?")])
    text = talk.engine.tokenizer.decode(request.prompt)
    assert "Which colour is the sky?" in text and text.endswith("ASSISTANT:")


def test_pieces_join_to_the_answer(talk):
    pieces = []
    assert talk.ask("Hello", pieces.append) == "".join(pieces)


def test_the_oldest_turns_leave_the_prompt_where_the_context_ends(talk):
    talk.system = "Be brief."
    turns = [Message("user", "old " * 200), Message("assistant", "x"), Message("user", "new question")]
    request = talk.fit(turns)
    expected = [Message("system", "Be brief."), turns[2]]
    assert list(request.prompt) == prompt_ids(talk.engine.tokenizer, "vicuna_v1.1", expected)
    assert talk.left_out == 2 and len(turns) == 3


def test_a_question_longer_than_the_context_is_one_sentence(talk, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 2000 + "\nHello\n"))
    chat.loop([talk])
    err = capsys.readouterr().err
    assert "error: the question has" in err and "leaves 504" in err
    assert [message.content for message in talk.messages if message.role == "user"] == ["Hello"]


def test_a_model_cannot_move_the_cursor(talk, capsys, monkeypatch):
    hostile = "\x1b[2J\x1b]0;owned\x07done\u202e"
    monkeypatch.setattr(Session, "ask", lambda self, text, show: show(hostile))
    chat.answer([talk], "hi")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out and r"\x1b[2J" in out and "done" in out


def test_commands_over_a_pipe(talk, capsys, monkeypatch, tmp_path):
    saved = tmp_path / "talk.jsonl"
    lines = [
        "Which colour is the sky?",
        "",
        "/new",
        "/system You are Pascaline.",
        "Who are you?",
        f"/save {saved}",
        f"/save {saved}",
        "/nonsense",
        "/retry",
        "/help",
        '"""',
        "two",
        "lines",
        '"""',
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat.loop([talk])
    err = capsys.readouterr().err
    assert "exists already" in err and "no command /nonsense" in err and "/retry" in err
    questions = [message.content for message in talk.messages if message.role == "user"]
    assert questions == ["Who are you?", "two\nlines"]
    record = json.loads(saved.read_text(encoding="utf-8"))
    assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant"]
    assert record["messages"][0]["content"] == "You are Pascaline."


def test_a_saved_conversation_is_read_by_the_corpus(talk, tmp_path):
    from recipe.conversations.formats.detect import read

    talk.ask("Which colour is the sky?")
    chat.save_as([talk], str(tmp_path / "talk.jsonl"))
    (conversation,) = read(tmp_path / "talk.jsonl")
    assert list(conversation.messages) == talk.messages


def test_a_save_that_fails_leaves_no_file(talk, tmp_path, monkeypatch):
    talk.ask("Which colour is the sky?")
    monkeypatch.setattr(json, "dumps", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(RecipeError, match="cannot be written"):
        chat.save_as([talk], str(tmp_path / "talk.jsonl"))
    assert not list(tmp_path.iterdir())


def test_retry_asks_again_and_samples_anew(talk):
    talk.sampling = Sampling(temperature=3.0, seed=1)
    talk.ask("Hello")
    first = list(talk.messages)
    chat.command([talk], "/retry")
    assert talk.messages[0] == first[0] and talk.messages[1] != first[1]
    with pytest.raises(RecipeError, match="no question"):
        chat.command([Session(talk.engine, "model", 8, Sampling())], "/retry")


def test_a_seed_repeats_the_whole_conversation(engine):
    def conversation():
        session = Session(engine, "model", 8, Sampling(temperature=2.0, seed=4))
        return [session.ask(question) for question in ("Hello", "Hello", "Who?")]

    first = conversation()
    assert first == conversation() and first[0] != first[1]


def test_ctrl_c_ends_the_answer_and_not_the_chat(talk, capsys, monkeypatch):
    def interrupted(self, text, show):
        show("half an ans")
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "ask", interrupted)
    chat.answer([talk], "hi")
    assert "half an ans (stopped)" in capsys.readouterr().out
    assert talk.messages == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "either a run"),
        (["--run", "a", "--model", "b"], "either a run"),
        (["--model", "b", "--compare"], "--compare needs a run"),
        (["--model", "b", "--prompt", "x", "--temperature", "nan"], "--temperature is nan"),
        (["--model", "b", "--prompt", "x", "--top-p", "0"], "--top-p is 0"),
        (["--model", "nothing", "--prompt", "x"], "nothing is not a folder"),
    ],
)
def test_wrong_flags_are_usage_errors(arguments, sentence, capsys):
    assert entry(lambda: chat.main(arguments)) == 2
    assert sentence in capsys.readouterr().err


def test_bytes_that_are_not_utf8_do_not_end_the_chat(tiny_base, monkeypatch, capsys):
    """With a standard input as Python opens it for a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nHello\n"), encoding="utf-8"))
    command = ["--model", str(tiny_base), "--precision", "fp32", "--max-new-tokens", "4"]
    assert entry(lambda: chat.main(command)) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_a_paste_in_a_terminal_is_one_question(tmp_path):
    """In a real terminal, with readline: three lines that arrive at once are one question."""
    code = (
        "import readline\n"
        "from recipe import chat\n"
        f"open({str(tmp_path / 'read')!r}, 'w').write(repr(chat.read_question()))\n"
    )
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    while b"you> " not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, b"first line\nsecond line\nthird line\n")
    while True:
        try:
            if not os.read(terminal, 1024):
                break
        except OSError:  # the program has ended
            break
    os.waitpid(pid, 0)
    assert (tmp_path / "read").read_text() == repr("first line\nsecond line\nthird line")

"""Sources that are hostile, or not what was meant: one sentence, bounded time, everything accounted for."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from recipe import corpus
from recipe.conversations.formats import detect
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline import resolve
from recipe.conversations.tokens import IGNORED
from recipe.core.cli import entry
from recipe.core.manifest import check_intact, read_manifest, write_manifest
from recipe.training.dataset import encode_file
from tests.corpus.records import inline, samples, sharegpt


def write(path: Path, turns: list[tuple[str, str]], count: int = 3) -> Path:
    pairs = [{"from": role, "value": text} for role, text in turns]
    path.write_text(json.dumps([{"id": f"c{number}", "conversations": pairs} for number in range(count)]))
    return path


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        (
            [("human", "q"), ("sidekick", "a"), ("sidekick", "b")],
            "of 4 conversations 3 were dropped (no question with an answer is left), and of 9 turns 6 (a role "
            "other than system, user, assistant); the most frequent ones are 'sidekick'; map them in the "
            "[[corpus.source]] table",
        ),
        ([("human", " "), ("gpt", "")], "of 6 turns 6 (a blank turn, or one without text); name the field of the text"),
    ],
)
def test_nothing_left_names_the_reason_and_leaves_the_account(command, tmp_path, capsys, turns, sentence) -> None:
    source = write(tmp_path / "raw.json", turns)
    with open(source, "a") as file:
        file.write("trailing")
    for _ in range(2):  # and again over what the first left
        assert command("--source", source) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert sentence in error
    assert not (tmp_path / "out").exists()
    account = tmp_path / "out-dropped"
    assert f"{account}/report.md lists every reason" in error
    results = check_intact(account)["results"]["sources"]["raw.json"]
    assert results["conversations"]["read"] == 4
    assert results["turns"]["read"] == sum(results["turns"]["dropped"].values())
    assert (
        "| raw.json | conversations | no question with an answer is left | 3 |" in (account / "report.md").read_text()
    )
    assert [line["reason"] for line in samples(account, "rejected")] == ["not_json"]
    assert command("--source", write(source, [("human", "q"), ("gpt", "a")])) == 0
    assert not account.exists()


def test_a_pipe_or_device_is_refused_before_it_is_opened(command, tmp_path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        assert command("--source", path) == 2
        assert "is not a regular file" in capsys.readouterr().err


def test_a_file_name_that_is_not_utf8_is_one_sentence(command, tmp_path, capsys) -> None:
    source = write(tmp_path / os.fsdecode(b"raw\xff.json"), [("human", "q"), ("gpt", "a")])
    assert command("--source", source) == 2
    assert "expected text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: data + b" "])
def test_a_source_that_changes_while_it_is_read_is_refused(
    command, source, tmp_path, capsys, monkeypatch, change
) -> None:
    read = detect.raw_records

    def read_and_change(path: Path, name: str):
        yield from read(path, name)
        path.write_bytes(change(path.read_bytes()))

    monkeypatch.setattr(detect, "raw_records", read_and_change)
    monkeypatch.setattr(detect, "check", lambda *arguments: None)
    assert command("--source", source, "--set", "corpus.processes=1") == 1
    assert "was written to while it was read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_source_is_hashed_once(command, source, monkeypatch) -> None:
    hashed: list[Path] = []
    hash_inputs = resolve.hash_inputs
    monkeypatch.setattr(resolve, "hash_inputs", lambda paths: hashed.extend(paths.values()) or hash_inputs(paths))
    assert command("--source", source) == 0
    assert hashed.count(source) == 1


def test_many_records_with_one_id_take_linear_time(command, tmp_path) -> None:
    records = [sharegpt(number, pairs=1) | {"id": "same"} for number in range(20_000)]
    (tmp_path / "raw.json").write_text(json.dumps(records))
    started = time.process_time()
    assert command("--source", tmp_path / "raw.json", "--set", "corpus.val_fraction=0.0") == 0
    assert time.process_time() - started < 15  # 30 s and more where each id is looked for from 2 on
    names = [line["id"] for line in samples(tmp_path / "out", "train")]
    assert len(set(names)) == len(names) == 20_000
    assert names[:3] == ["same", "same+2", "same+3"]


def test_a_numbered_id_never_takes_the_place_of_a_real_one(command, tmp_path) -> None:
    names = ["a", "a+2", "a", "a+3", "a", "a+2"]
    records = [sharegpt(number, pairs=1) | {"id": name} for number, name in enumerate(names)]
    (tmp_path / "raw.json").write_text(json.dumps(records))
    assert command("--source", tmp_path / "raw.json", "--set", "corpus.val_fraction=0.0") == 0
    found = [line["id"] for line in samples(tmp_path / "out", "train")]
    assert found == ["a", "a+2", "a+3", "a+3+2", "a+4", "a+2+2"]


def test_placeholders_are_reported_with_the_setting_that_fills_them(command, assets, tmp_path, capsys) -> None:
    source = assets / "conversations" / "lf_identity.json"
    assert command("--source", source) == 0
    error = capsys.readouterr().err
    assert "turns contain placeholders ({{name}} in " in error
    assert r"corpus.replace = ['\{\{name\}\} => TEXT']" in error
    assert "| lf\\_identity.json | author |" in (tmp_path / "out" / "report.md").read_text()
    rules = [r"\{\{name\}\} => Ada", r"\{\{author\}\} => Us"]
    assert command("--source", source, "--set", f"corpus.replace={json.dumps(rules)}") == 0
    assert "placeholders" not in capsys.readouterr().err
    assert "I am Ada" in (tmp_path / "out" / "train.jsonl").read_text()


def test_answers_that_were_not_taken_are_said(command, tmp_path, capsys) -> None:
    (tmp_path / "raw.json").write_text(json.dumps([{"instruction": "q", "output": ["a", "b", "c"]}]))
    assert command("--source", tmp_path / "raw.json") == 0
    assert "the first was taken, 2 others were not: answers = 'all' takes them all" in capsys.readouterr().err
    turns = read_manifest(tmp_path / "out")["results"]["sources"]["raw.json"]["turns"]
    assert turns["dropped"] == {"unranked": 2}
    assert turns["read"] == 4
    sources = inline([{"path": str(tmp_path / "raw.json"), "answers": "all"}])
    assert command("--set", f"corpus.source={sources}") == 0
    assert "were not" not in capsys.readouterr().err
    texts = [line["messages"][1]["content"] for part in ("train", "val") for line in samples(tmp_path / "out", part)]
    assert sorted(texts) == ["a", "b", "c"]


def test_changed_turns_are_listed(command, tmp_path) -> None:
    page = '<div class="markdown"><p>an <b>answer</b></p></div>'
    write(tmp_path / "raw.json", [("human", "q\n\n1 / 2"), ("gpt", page), ("human", "x"), ("gpt", "<p>text</p>")], 1)
    settings = ["--set", "corpus.val_fraction=0.0"]
    assert command("--source", tmp_path / "raw.json", *settings) == 0
    assert samples(tmp_path / "out", "changed") == [
        {"source": "raw.json", "id": "c0", "turn": 0, "changes": ["remnant"]},
        {"source": "raw.json", "id": "c0", "turn": 1, "changes": ["markup"]},
    ]
    texts = [message["content"] for message in samples(tmp_path / "out", "train")[0]["messages"]]
    assert texts == ["q", "an **answer**", "x", "<p>text</p>"]
    sources = inline([{"path": str(tmp_path / "raw.json"), "html": True}])
    assert command("--set", f"corpus.source={sources}", *settings) == 0
    assert samples(tmp_path / "out", "train")[0]["messages"][3]["content"] == "text"


def test_an_untrained_turn_has_no_label_in_training(command, source, tokenizer, tmp_path, monkeypatch) -> None:
    def conversations(record, number, name, *_, **__):
        turns = [Message("user", "one"), Message("assistant", "bad", trained=False), Message("user", "two")]
        yield Conversation(f"c{number}", (*turns, Message("assistant", f"good {number}")), name)

    monkeypatch.setattr(detect, "conversations", conversations)
    assert command("--source", source, "--set", "corpus.processes=1", "--set", "corpus.val_fraction=0.0") == 0
    rows = encode_file(tmp_path / "out" / "train.jsonl", tokenizer, "vicuna_v1.1")
    for number, labels in enumerate(rows["labels"]):
        assert tokenizer.decode([label for label in labels if label != IGNORED]) == f" good {number}<|im_end|>"
    results = read_manifest(tmp_path / "out")["results"]
    assert results["trained_tokens"]["train"] == sum(label != IGNORED for labels in rows["labels"] for label in labels)
    assert results["tokens"]["train"] == sum(map(len, rows["labels"]))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_damaged_tokenizer_is_one_sentence(base, source, tmp_path, capsys, has_manifest) -> None:
    place = shutil.copytree(base, tmp_path / "base")
    if has_manifest:
        write_manifest(place, "convert", {}, {}, {})
    data = (place / "tokenizer.json").read_bytes()
    (place / "tokenizer.json").write_bytes(data.replace(b'"vocab"', b'"vocac"'))
    arguments = ["--output", str(tmp_path / "out"), "--tokenizer", str(place), "--source", str(source)]
    assert entry(lambda: corpus.main(arguments)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert ("was altered" if has_manifest else "cannot be loaded") in said

"""The stage as a person runs it: files in, a folder out, one sentence where it cannot be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe.conversations import identity
from recipe.conversations.messages import Message
from recipe.conversations.pipeline.build import load_tokenizer
from recipe.conversations.pipeline.cluster import ClusterError
from recipe.conversations.pipeline.write import split_boundary
from recipe.conversations.templates import render
from recipe.conversations.tokens import IGNORED, encode, encoders
from recipe.core.cli import INTERRUPTED
from recipe.core.errors import UnfitError
from recipe.core.manifest import check_intact, read_manifest
from tests.corpus.records import samples, sharegpt

ROOT = Path(__file__).parents[2]


def test_every_turn_is_in_one_part_and_every_number_holds(command, source, tokenizer, tmp_path) -> None:
    assert command("--source", source, "--set", "corpus.max_length=600", "--set", "corpus.val_fraction=0.3") == 0
    out = tmp_path / "out"
    parts = {name: samples(out, name) for name in ("train", "val")}
    texts = [message["content"] for part in parts.values() for line in part for message in line["messages"]]
    raw = [turn["value"] for record in json.loads(source.read_text()) for turn in record["conversations"]]
    assert sorted(texts) == sorted(raw)

    conversations = {name: {line["id"].split("#")[0] for line in part} for name, part in parts.items()}
    assert conversations["train"].isdisjoint(conversations["val"])
    assert min(map(len, conversations.values())) >= 4
    assert {line["source"] for part in parts.values() for line in part} == {"raw.json"}

    results = check_intact(out)["results"]
    for name, part in parts.items():
        encoded = [
            encode(tokenizer, render("vicuna_v1.1", [Message(**message) for message in line["messages"]]))
            for line in part
        ]
        assert all(len(input_ids) <= 600 for input_ids, _ in encoded)
        assert results["samples"][name] == len(part)
        assert results["tokens"][name] == sum(len(input_ids) for input_ids, _ in encoded)
        trained = sum(label != IGNORED for _, labels in encoded for label in labels)
        assert results["trained_tokens"][name] == trained
    assert results["samples"]["train"] > len(conversations["train"])  # some were split
    assert results["sources"]["raw.json"]["conversations"] == {"read": 40, "kept": 40, "dropped": {}}


def test_the_hold_out_does_not_depend_on_the_order(command, source, tmp_path) -> None:
    assert command("--source", source) == 0
    before = {line["id"] for line in samples(tmp_path / "out", "val")}
    source.write_text(json.dumps(json.loads(source.read_text())[::-1]))
    assert command("--source", source) == 0
    assert {line["id"] for line in samples(tmp_path / "out", "val")} == before != set()


@pytest.mark.parametrize("share", [0.001, 0.9])
def test_neither_part_of_a_small_corpus_is_empty(command, tmp_path, share: float) -> None:
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps([sharegpt(1, pairs=9), sharegpt(2, pairs=9)]))
    settings = ["--set", f"corpus.val_fraction={share}", "--set", "corpus.max_length=600"]
    assert command("--source", raw, *settings) == 0
    sides = [{line["id"].split("#")[0] for line in samples(tmp_path / "out", part)} for part in ("train", "val")]
    assert sorted(map(len, sides)) == [1, 1]
    assert sides[0] | sides[1] == {"c1", "c2"}
    results = read_manifest(tmp_path / "out")["results"]
    assert results["samples"] == {part: len(samples(tmp_path / "out", part)) for part in ("train", "val")}
    assert all(results["tokens"].values())


@pytest.mark.parametrize(
    ("positions", "fraction", "validation"),
    [
        ([0.5, 0.1, 0.3, 0.1], 0.2, {0.1}),
        ([0.5, 0.1, 0.3, 0.1], 0.9, {0.1, 0.3}),  # else nothing is left to train on
        ([0.5, 0.1, 0.3, 0.1], 0.01, {0.1}),  # else nothing validates
        ([0.5, 0.1, 0.3, 0.1], 0.0, set()),
        ([0.1, 0.1], 0.9, set()),
        ([0.4], 0.01, set()),
    ],
)
def test_the_split_leaves_no_side_empty(positions: list[float], fraction: float, validation: set[float]) -> None:
    boundary = split_boundary(positions, fraction)
    assert {position for position in positions if position < boundary} == validation


@pytest.mark.parametrize(("share", "held_out"), [(0.9, 0), (0.0, 0)])
def test_one_conversation_is_trained_on(command, tmp_path, share: float, held_out: int) -> None:
    (tmp_path / "raw.json").write_text(json.dumps(sharegpt(1)))
    assert command("--source", tmp_path / "raw.json", "--set", f"corpus.val_fraction={share}") == 0
    assert len(samples(tmp_path / "out", "train")) == 1
    assert len(samples(tmp_path / "out", "val")) == held_out


def test_identity_is_repeated_in_the_training_part_only(command, source, tmp_path) -> None:
    who = ["--set", "corpus.identity_name=Ada", "--set", "corpus.identity_organisation=Lovelace Works"]
    assert (
        command("--source", source, *who, "--set", "corpus.identity_repeat=3", "--set", "corpus.val_fraction=0.2") == 0
    )
    train, val = (
        [line for line in samples(tmp_path / "out", part) if line["source"] == identity.SOURCE]
        for part in ("train", "val")
    )
    texts = [[json.dumps(line["messages"]) for line in part] for part in (train, val)]
    assert all(texts[0].count(text) == 3 for text in texts[0])
    assert all(texts[1].count(text) == 1 for text in texts[1])
    assert texts[1]
    assert set(texts[0]).isdisjoint(texts[1])
    assert len(set(texts[0]) | set(texts[1])) == len(identity.training("Ada", "Lovelace Works"))
    everything = samples(tmp_path / "out", "train")
    assert len({line["id"] for line in everything}) == len(everything)
    results = read_manifest(tmp_path / "out")["results"]
    assert results["samples"]["train"] == len(everything)


def test_identity_alone_is_a_corpus(command, tmp_path) -> None:
    assert command("--set", "corpus.identity_name=Ada", "--set", "corpus.identity_organisation=Us") == 0
    assert samples(tmp_path / "out", "train")


def test_what_is_done_is_skipped_and_what_changed_is_made_again(command, source, tmp_path, capsys) -> None:
    assert command("--source", source) == 0
    stamp = (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns
    assert command("--source", source) == 0
    assert "is already prepared" in capsys.readouterr().err
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns == stamp
    assert command("--source", source, "--set", "corpus.seed=1") == 0
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns != stamp


def test_the_same_work_leaves_the_same_bytes(command, source, tmp_path) -> None:
    assert command("--source", source) == 0
    first = read_manifest(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    assert command("--source", source) == 0
    assert read_manifest(tmp_path / "out") == first
    assert str(tmp_path) not in json.dumps(first)


def test_a_dry_run_touches_nothing(command, source, tmp_path, capsys) -> None:
    assert command("--source", source, "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_json_is_the_manifest(command, source, tmp_path, capsys) -> None:
    assert command("--source", source, "--json") == 0
    assert json.loads(capsys.readouterr().out) == read_manifest(tmp_path / "out")


def test_show_marks_what_is_trained_on_also_later(command, source, tmp_path, capsys) -> None:
    assert command("--source", source, "--show", 2) == 0
    capsys.readouterr()
    assert command("--show", 3) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- c") == 3
    first = samples(tmp_path / "out", "train")[0]["messages"]
    assert f"USER: {first[0]['content']} ASSISTANT:⟦ {first[1]['content']}<eos>⟧" in shown


@pytest.fixture(scope="module")
def large(base, tmp_path_factory) -> tuple[list[str], Path]:
    """The command that prepares 15 MB, so that there is time to stop it, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("large")
    many = [sharegpt(number, pairs=20, length=600) for number in range(600)]
    (folder / "raw.json").write_text(json.dumps(many))
    command = [sys.executable, "-m", "recipe.corpus", "--source", str(folder / "raw.json"), "--tokenizer", str(base)]
    one = [*command, "--output", str(folder / "one"), "--set", "corpus.processes=1"]
    subprocess.run(one, cwd=ROOT, capture_output=True, check=True)
    return command, folder / "one"


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, INTERRUPTED)])
def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(large, tmp_path, sent, code: int) -> None:
    """Killed alone, or with Ctrl-C, which reaches all of a terminal's processes."""
    command, one = large
    out = tmp_path / "out"
    command = [*command, "--output", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.shards/*/*.index"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    said = process.communicate(timeout=60)[1]  # when the last process has ended, too
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert ("run the same command again to resume" in said) == (sent == signal.SIGINT)
    assert not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".out.shards/*/*.index")}
    assert len(finished) >= 3
    stamps = []

    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        found = {path: path.stat().st_mtime_ns for path in finished if path.exists()}
        stamps += [found[path] == stamp for path, stamp in finished.items() if path in found]
        time.sleep(0.01)
    assert process.returncode == 0
    assert stamps
    assert all(stamps)  # none was made again
    assert not (tmp_path / ".out.shards").exists()
    for name in ("train.jsonl", "val.jsonl", "report.md", "report.html"):
        assert (out / name).read_bytes() == (one / name).read_bytes()


@pytest.mark.parametrize("layout", ["alpaca", "sharegpt", "messages"])
def test_an_export_is_a_source_like_any_other(command, source, tmp_path, layout: str) -> None:
    assert command("--source", source, "--export", layout) == 0
    assert command("--export", layout) == 0  # of what is there already
    exported = tmp_path / f"out-{layout}"
    check_intact(exported)
    first = samples(tmp_path / "out", "train")
    assert command("--source", exported / "train.json", "--set", "corpus.val_fraction=0.0") == 0
    again = samples(tmp_path / "out", "train")
    assert [(line["id"], line["messages"]) for line in again] == [(line["id"], line["messages"]) for line in first]


@pytest.mark.parametrize("kind", ["tiny", "llama"])
def test_the_tokenizer_is_that_of_training(tiny_base, assets, tmp_path, kind: str) -> None:
    from transformers import AutoTokenizer, LlamaTokenizerFast

    folder = tiny_base
    if kind == "llama":
        model, folder = assets / "tokenizers" / "llama2_tokenizer.model", tmp_path
        LlamaTokenizerFast(vocab_file=str(model), legacy=True, add_prefix_space=True).save_pretrained(folder)
    mine, theirs = (
        encoders(tokenizer)
        for tokenizer in (
            load_tokenizer(folder),
            AutoTokenizer.from_pretrained(folder),
        )
    )
    assert (mine.bos, mine.eos) == (theirs.bos, theirs.eos)
    for one, other in ((mine.leading, theirs.leading), (mine.inner, theirs.inner)):
        assert json.loads(one.to_str()) == json.loads(other.to_str())


def test_help_is_instant_and_needs_no_torch() -> None:
    code = "import sys; from recipe import corpus; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("error", [ClusterError, UnfitError])
def test_a_cluster_at_fault_costs_no_finished_shard(command, source, tmp_path, monkeypatch, error) -> None:
    def lose(plan, output, work):
        (work / "0").write_text("a finished shard")
        raise error("the cluster was lost")

    with monkeypatch.context() as patch:
        patch.setattr("recipe.corpus.build_corpus", lose)
        assert command("--source", source) == error.exit_code
    (shard,) = tmp_path.glob(".out.shards/*/0")
    assert shard.read_text() == "a finished shard"


@pytest.mark.parametrize("option", [("--export", "sharegpt"), ("--show", "1")])
def test_an_altered_corpus_is_neither_exported_nor_shown(command, source, tmp_path, capsys, option) -> None:
    assert command("--source", source) == 0
    with open(tmp_path / "out" / "train.jsonl", "a") as file:
        file.write("{}\n")
    assert command(*option) == 1
    assert "train.jsonl has" in capsys.readouterr().err and not (tmp_path / "out-sharegpt").exists()

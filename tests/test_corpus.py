"""The stage as a person runs it: files in, a folder out, one sentence where it cannot be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe import console, corpus, provenance
from recipe.conversations import identity
from recipe.conversations.formats import Message
from recipe.conversations.templates import render
from recipe.conversations.tokens import IGNORED, encode


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE without merges: a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def base(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer.save_pretrained(folder)
    return folder


def sharegpt(number: int, pairs: int = 2, length: int = 40) -> dict:
    turns = [
        {"from": ("human", "gpt")[index % 2], "value": f"{number} {index} " + "word " * (length // 5)}
        for index in range(2 * pairs)
    ]
    return {"id": f"c{number}", "conversations": turns}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps([sharegpt(number, pairs=1 + number % 9) for number in range(40)]))
    return path


@pytest.fixture
def command(base: Path, tmp_path: Path):
    """Runs the stage; returns its exit code."""

    def run(*arguments: object) -> int:
        places = ["--output", str(tmp_path / "out"), "--tokenizer", str(base)]
        return console.entry(lambda: corpus.main([*places, *map(str, arguments)]))

    return run


def samples(folder: Path, part: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


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

    results = provenance.check_intact(out)["results"]
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


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_neither_part_of_a_small_corpus_is_empty(command, tmp_path, share: float) -> None:
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps([sharegpt(1, pairs=9), sharegpt(2, pairs=9)]))
    settings = ["--set", f"corpus.val_fraction={share}", "--set", "corpus.max_length=600"]
    assert command("--source", raw, *settings) == 0
    sides = [{line["id"].split("#")[0] for line in samples(tmp_path / "out", part)} for part in ("train", "val")]
    assert sorted(map(len, sides)) == [1, 1]
    assert sides[0] | sides[1] == {"c1", "c2"}
    results = provenance.read_manifest(tmp_path / "out")["results"]
    assert results["samples"] == {part: len(samples(tmp_path / "out", part)) for part in ("train", "val")}
    assert all(results["tokens"].values())


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
    results = provenance.read_manifest(tmp_path / "out")["results"]
    assert results["samples"]["train"] == len(everything)


def test_identity_alone_is_a_corpus(command, tmp_path) -> None:
    assert command("--set", "corpus.identity_name=Ada", "--set", "corpus.identity_organisation=Us") == 0
    assert samples(tmp_path / "out", "train")


def test_what_is_done_is_skipped_and_what_changed_is_made_again(command, source, tmp_path, capsys) -> None:
    assert command("--source", source) == 0
    stamp = (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns
    assert command("--source", source) == 0
    assert "is prepared already" in capsys.readouterr().err
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns == stamp
    assert command("--source", source, "--set", "corpus.seed=1") == 0
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns != stamp


def test_the_same_work_leaves_the_same_bytes(command, source, tmp_path) -> None:
    assert command("--source", source) == 0
    first = provenance.read_manifest(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    assert command("--source", source) == 0
    assert provenance.read_manifest(tmp_path / "out") == first
    assert str(tmp_path) not in json.dumps(first)


def test_a_dry_run_touches_nothing(command, source, tmp_path, capsys) -> None:
    assert command("--source", source, "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_json_is_the_manifest(command, source, tmp_path, capsys) -> None:
    assert command("--source", source, "--json") == 0
    assert json.loads(capsys.readouterr().out) == provenance.read_manifest(tmp_path / "out")


def test_the_report_tells_what_was_dropped_and_where(command, source, tmp_path, capsys) -> None:
    records = json.loads(source.read_text())
    records[3]["conversations"].insert(0, {"from": "gpt", "value": "unasked"})
    whole = json.dumps(records)
    source.write_text(whole[:-30])
    assert command("--source", source) == 0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| raw.json | conversations | the file ends inside the record | 1 |" in report
    assert "| raw.json | turns | an answer before the first question | 1 |" in report
    start = whole.rindex('{"id"')
    assert f"| raw.json | {start:,} | the file ends inside the record |" in report
    assert f"{len(whole) - 30 - start:,} bytes of an unfinished record were lost" in report
    assert f"byte {start:,}" in capsys.readouterr().err
    assert "█" in report


def test_show_marks_what_is_trained_on_also_later(command, source, tmp_path, capsys) -> None:
    assert command("--source", source, "--show", 2) == 0
    capsys.readouterr()
    assert command("--show", 3) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- c") == 3
    first = samples(tmp_path / "out", "train")[0]["messages"]
    assert f"USER: {first[0]['content']} ASSISTANT:⟦ {first[1]['content']}<eos>⟧" in shown


@pytest.mark.slow
def test_kept_and_dropped_add_up_on_all_real_files_at_once(command, assets, tmp_path) -> None:
    """Every source's account, and what lies in the files, counted here from the files themselves."""
    files = sorted((assets / "conversations").glob("*.json*"))
    steps = ["corpus.duplicates=near", "corpus.over_long=truncate", 'corpus.languages_skip=["fr"]', "corpus.script=t2s"]
    steps += ["corpus.repeated_digits=9", "corpus.max_length=800", 'corpus.sample=["lf_kto_en_demo.json=0.5"]']
    assert command("--source", *files, *(item for step in steps for item in ("--set", step))) == 0
    results = provenance.check_intact(tmp_path / "out")["results"]
    assert set(results["sources"]) == {file.name for file in files}
    for account in results["sources"].values():
        for what in ("conversations", "turns"):
            count = account[what]
            assert count["read"] == count["kept"] + sum(count["dropped"].values())
    lines = [line for part in ("train", "val") for line in samples(tmp_path / "out", part)]
    for name, account in results["sources"].items():
        mine = [line for line in lines if line["source"] == name]
        assert len({line["id"].split("#")[0] for line in mine}) == account["conversations"]["kept"]
        said = sum(message["role"] != "system" for line in mine for message in line["messages"])
        assert said <= account["turns"]["kept"] <= said + account["conversations"]["kept"]
        assert sum(account["languages"].values()) <= account["conversations"]["kept"]
    assert results["sources"]["oa_en_100_tree.jsonl"]["turns"]["dropped"]["passed_over"] > 100


def test_a_bad_record_is_set_aside_with_its_place(command, source, tmp_path, capsys) -> None:
    good = json.loads(source.read_text())
    source.write_text(json.dumps(good[:5])[:-1] + ', {"id": oops}, ' + json.dumps(good[5:])[1:])
    assert command("--source", source) == 0
    (line,) = samples(tmp_path / "out", "rejected")
    text = source.read_text()
    assert text[line["offset"] :].startswith('{"id": oops}')
    assert line["bytes"] == len('{"id": oops}, ')
    assert (line["source"], line["reason"]) == ("raw.json", "not_json")
    assert line["text"].startswith('{"id": oops}')
    assert f"raw.json, byte {line['offset']:,}: broken JSON" in capsys.readouterr().err
    results = provenance.read_manifest(tmp_path / "out")["results"]
    assert results["sources"]["raw.json"]["conversations"] == {"read": 41, "kept": 40, "dropped": {"not_json": 1}}


def test_equal_ids_with_other_content_stay_apart(command, tmp_path) -> None:
    records = [sharegpt(number) | {"id": "same"} for number in range(3)]
    (tmp_path / "raw.json").write_text(json.dumps(records))
    assert command("--source", tmp_path / "raw.json", "--set", "corpus.val_fraction=0.0") == 0
    assert [line["id"] for line in samples(tmp_path / "out", "train")] == ["same", "same+2", "same+3"]
    assert provenance.read_manifest(tmp_path / "out")["results"]["repeated_ids"] == 2


@pytest.mark.parametrize(("kind", "kept"), [("keep", 4), ("exact", 3), ("near", 2)])
def test_duplicates(command, tmp_path, kind: str, kept: int) -> None:
    words = " ".join(f"word{number}" for number in range(200))

    def record(text: str) -> dict:
        return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "fine"}]}

    texts = [words, words.upper(), words.replace("word7 ", "word "), "something else altogether"]
    (tmp_path / "raw.json").write_text(json.dumps([record(text) for text in texts]))
    settings = ["--set", f"corpus.duplicates={kind}", "--set", "corpus.val_fraction=0.0"]
    assert command("--source", tmp_path / "raw.json", *settings) == 0
    assert len(samples(tmp_path / "out", "train")) == kept
    account = provenance.read_manifest(tmp_path / "out")["results"]["sources"]["raw.json"]
    assert account["conversations"]["kept"] == kept
    assert account["turns"]["read"] == account["turns"]["kept"] + sum(account["turns"]["dropped"].values())


def test_a_mixture_is_reached_by_repeating(command, tmp_path) -> None:
    for name, first, count in (("big", 0, 60), ("small", 100, 7), ("other", 200, 3)):
        records = [sharegpt(number) for number in range(first, first + count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    files = [tmp_path / f"{name}.json" for name in ("big", "small", "other")]
    mixture = 'corpus.mixture=["big.json=2", "small.json=1"]'
    assert command("--source", *files, "--set", mixture, "--set", "corpus.val_fraction=0.0") == 0
    results = provenance.read_manifest(tmp_path / "out")["results"]
    tokens = results["mixture"]
    assert tokens["small.json"] / tokens["big.json"] == pytest.approx(0.5, rel=0.1)
    lines = samples(tmp_path / "out", "train")
    assert len({line["id"] for line in lines}) == len(lines) == results["samples"]["train"]
    assert sum(line["source"] == "other.json" for line in lines) == 3
    assert sum(results["tokens"].values()) == sum(tokens.values())


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, console.INTERRUPTED)])
def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(base, tmp_path, sent, code: int) -> None:
    """Killed alone, or with Ctrl-C, which reaches all of a terminal's processes."""
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps([sharegpt(number, pairs=20, length=600) for number in range(900)]))  # 21 MB
    command = [sys.executable, "-m", "recipe.corpus", "--source", raw, "--tokenizer", base, "--output"]
    out, root = tmp_path / "out", Path(__file__).parents[1]
    process = subprocess.Popen(
        [*command, out], cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.parts/*/*.index"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    said = process.communicate(timeout=60)[1]  # when the last process has ended, too
    assert process.returncode == code
    assert "Traceback" not in said
    assert ("the same command goes on" in said) == (sent == signal.SIGINT)
    assert not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".out.parts/*/*.index")}
    assert len(finished) >= 3
    stamps = []

    process = subprocess.Popen([*command, out], cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        found = {path: path.stat().st_mtime_ns for path in finished if path.exists()}
        stamps += [found[path] == stamp for path, stamp in finished.items() if path in found]
        time.sleep(0.01)
    assert process.returncode == 0
    assert stamps
    assert all(stamps)  # none was made again
    assert not (tmp_path / ".out.parts").exists()
    one = subprocess.run([*command, tmp_path / "one", "--set", "corpus.processes=1"], cwd=root, capture_output=True)
    assert one.returncode == 0, one.stderr
    for name in ("train.jsonl", "val.jsonl", "report.md", "report.html"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize("layout", ["alpaca", "sharegpt", "messages"])
def test_an_export_is_a_source_like_any_other(command, source, tmp_path, layout: str) -> None:
    assert command("--source", source, "--export", layout) == 0
    assert command("--export", layout) == 0  # of what is there already
    exported = tmp_path / f"out-{layout}"
    provenance.check_intact(exported)
    first = samples(tmp_path / "out", "train")
    assert command("--source", exported / "train.json", "--set", "corpus.val_fraction=0.0") == 0
    again = samples(tmp_path / "out", "train")
    assert [(line["id"], line["messages"]) for line in again] == [(line["id"], line["messages"]) for line in first]


def test_sources_of_one_name_are_told_apart_and_named_formats_hold(command, tmp_path) -> None:
    tree = {"prompt": {"text": "q", "role": "prompter", "replies": []}}
    tree["prompt"]["replies"] = [{"text": text, "role": "assistant", "rank": rank} for rank, text in enumerate("ab")]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "raw.json").write_text(json.dumps([tree | {"message_tree_id": name}]))
    files = [tmp_path / name / "raw.json" for name in ("x", "y")]
    settings = ["--set", 'corpus.formats=["y/raw.json=oasst-all"]', "--set", "corpus.val_fraction=0.0"]
    assert command("--source", *files, *settings, "--set", "corpus.duplicates=keep") == 0
    results = provenance.read_manifest(tmp_path / "out")["results"]
    assert {name: account["conversations"]["kept"] for name, account in results["sources"].items()} == {
        "x/raw.json": 1,
        "y/raw.json": 2,
    }


def test_prompts_of_an_evaluation_are_kept_out(command, source, tmp_path) -> None:
    question = json.loads(source.read_text())[0]["conversations"][0]["value"]
    (tmp_path / "prompts.txt").write_text(f"{question}\n\nsomething else\n")
    assert command("--source", source, "--set", f'corpus.decontaminate=["{tmp_path}/prompts.txt"]') == 0
    account = provenance.read_manifest(tmp_path / "out")["results"]["sources"]["raw.json"]
    assert account["conversations"]["dropped"] == {"contaminated": 1}
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--source", "none.json"], 2, "there is no file none.json"),
        (["--source", "{tmp}/text.json"], 1, "starts with 'just text': expected JSON"),
        (["--source", "{tmp}/strange.json"], 1, "is in no known format: found an object with the keys 'prompt'"),
        (["--source", "{tmp}/empty.json"], 1, "is empty"),
        (["--source", "{tmp}/unasked.json"], 1, "of 2 conversations 2 were dropped because of no question with an"),
        (["--source", "{tmp}/good.json", "--set", "corpus.max_length=9"], 1, "over the token limit"),
        (["--source", "{tmp}/good.json", "--set", "corpus.template=x"], 2, "no template 'x'"),
        (["--source", "{tmp}/good.json", "--set", "corpus.val_fraction=1.5"], 2, "expected a share"),
        (["--source", "{tmp}/good.json", "--set", "corpus.identity_repeat=0"], 2, "expected 1 or more"),
        (["--set", "corpus.identity_name=Ada"], 2, "identity_organisation is empty"),
        (["--source", "{tmp}/good.json", "--set", "corpus.colour=1"], 2, "unknown key corpus.colour"),
        (["--source", "{tmp}/good.json", "{tmp}/good.json"], 2, "names a file twice"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.sample=["x.json=0.5"]'], 2, "with a name of identity, good"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.sample=["good.json=2"]'], 2, "above 0 and at most 1"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.mixture=["good.json=x"]'], 2, "expected a number"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.formats=["good.json=x"]'], 2, "no format 'x'"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.formats=["good.json=dolly"]'], 1, "known are dolly"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.replace=["( => x"]'], 2, "is no regular expression"),
        (["--source", "{tmp}/good.json", "--set", "corpus.repeated_digits=1"], 2, "expected 0 (off), or 2 or more"),
        (["--source", "{tmp}/good.json", "--set", "corpus.near_threshold=2.0"], 2, "expected a similarity"),
        (["--source", "{tmp}/good.json", "--set", "corpus.rounds=-1"], 2, "expected 0 or more"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.decontaminate=["none.txt"]'], 2, "there is no file none.txt"),
        (["--source", "{tmp}/good.json", "--tokenizer", "{tmp}"], 2, "has no tokenizer.json"),
        (["--source", "{tmp}/good.json", "--show", "0"], 2, "expected 1 or more"),
        (["--source", "{tmp}/good.json", "--show", "1", "--json"], 2, "--show prints text"),
        ([], 2, "corpus.sources is empty: pass --source FILE"),
        (["--show", "1"], 2, "no prepared corpus"),
    ],
)
def test_bad_input_is_one_sentence(command, tmp_path, capsys, arguments, code, sentence) -> None:
    files = {
        "text": "just text",
        "empty": "",
        "strange": json.dumps([{"prompt": "x", "reply": "y"}]),
        "unasked": json.dumps([{"conversations": [{"from": "gpt", "value": f"{number}"}]} for number in range(2)]),
        "good": json.dumps([sharegpt(1)]),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert command(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)) == code
    captured = capsys.readouterr()
    (error,) = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert sentence in error
    assert captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json" for name in files}


def test_help_is_instant_and_needs_no_torch() -> None:
    code = "import sys; from recipe import corpus; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])

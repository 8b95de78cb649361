"""What came in was kept or has a reason, and what cannot be is one sentence."""

import json
import time

import pytest

from recipe.core.manifest import check_intact, read_manifest
from tests.corpus.records import inline, samples, sharegpt


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


@pytest.mark.slow
def test_kept_and_dropped_add_up_on_all_real_files_at_once(command, assets, tmp_path) -> None:
    """Every source's account, and what lies in the files, counted here from the files themselves."""
    files = sorted((assets / "conversations").glob("*.json*"))
    steps = ["corpus.duplicates=near", "corpus.over_long=truncate", 'corpus.languages_skip=["fr"]', "corpus.script=t2s"]
    shares = [{"path": str(file), "share": 0.5 if "kto" in file.name else 1.0} for file in files]
    steps += ["corpus.repeated_digits=9", "corpus.max_length=800", f"corpus.source={inline(shares)}"]
    assert command(*(item for step in steps for item in ("--set", step))) == 0
    results = check_intact(tmp_path / "out")["results"]
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
    results = read_manifest(tmp_path / "out")["results"]
    assert results["sources"]["raw.json"]["conversations"] == {"read": 41, "kept": 40, "dropped": {"not_json": 1}}


def test_equal_ids_with_other_content_stay_apart(command, tmp_path) -> None:
    records = [sharegpt(number) | {"id": "same"} for number in range(3)]
    (tmp_path / "raw.json").write_text(json.dumps(records))
    assert command("--source", tmp_path / "raw.json", "--set", "corpus.val_fraction=0.0") == 0
    assert [line["id"] for line in samples(tmp_path / "out", "train")] == ["same", "same+2", "same+3"]
    assert read_manifest(tmp_path / "out")["results"]["repeated_ids"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["some words in a sentence. ", "<p>", "x", "你好，我是助手。"])
def test_a_turn_of_50_mb_costs_its_own_conversation_and_no_more_than_seconds(command, tmp_path, answer: str) -> None:
    size = 50_000_000
    answer = answer * (size // len(answer.encode()))
    if answer.startswith("<p>"):
        answer = "<p>" + "some <b>bold</b> words. " * (size // 24) + "</p>"
    records = [sharegpt(number) for number in range(4)]
    records[1]["conversations"][1]["value"] = answer
    (tmp_path / "raw.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    started = time.monotonic()
    assert command("--source", tmp_path / "raw.json", "--set", "corpus.max_length=500") == 0
    assert time.monotonic() - started < 60
    account = read_manifest(tmp_path / "out")["results"]["sources"]["raw.json"]
    assert account["conversations"] == {"read": 4, "kept": 4, "dropped": {}}
    assert account["turns"]["dropped"] == {"over_long_pair": 2}  # the same conversation's other pair is kept


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
    account = read_manifest(tmp_path / "out")["results"]["sources"]["raw.json"]
    assert account["conversations"]["kept"] == kept
    assert account["turns"]["read"] == account["turns"]["kept"] + sum(account["turns"]["dropped"].values())


def test_a_mixture_is_reached_by_repeating(command, tmp_path) -> None:
    for name, first, count in (("big", 0, 60), ("small", 100, 7), ("other", 200, 3)):
        records = [sharegpt(number) for number in range(first, first + count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    files = [tmp_path / f"{name}.json" for name in ("big", "small", "other")]
    weights = zip(files, (2.0, 1.0, 0.0), strict=True)
    sources = inline([{"path": str(file), "weight": weight} for file, weight in weights])
    assert command("--set", f"corpus.source={sources}", "--set", "corpus.val_fraction=0.0") == 0
    results = read_manifest(tmp_path / "out")["results"]
    tokens = results["mixture"]
    assert tokens["small.json"] / tokens["big.json"] == pytest.approx(0.5, rel=0.1)
    lines = samples(tmp_path / "out", "train")
    assert len({line["id"] for line in lines}) == len(lines) == results["samples"]["train"]
    assert sum(line["source"] == "other.json" for line in lines) == 3
    assert sum(results["tokens"].values()) == sum(tokens.values())


def test_sources_of_one_name_are_told_apart_and_named_formats_hold(command, tmp_path) -> None:
    tree = {"prompt": {"text": "q", "role": "prompter", "replies": []}}
    tree["prompt"]["replies"] = [{"text": text, "role": "assistant", "rank": rank} for rank, text in enumerate("ab")]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "raw.json").write_text(json.dumps([tree | {"message_tree_id": name}]))
    files = [tmp_path / name / "raw.json" for name in ("x", "y")]
    sources = inline([{"path": str(files[0])}, {"path": str(files[1]), "format": "oasst-all"}])
    settings = ["--set", f"corpus.source={sources}", "--set", "corpus.val_fraction=0.0"]
    assert command(*settings, "--set", "corpus.duplicates=keep") == 0
    results = read_manifest(tmp_path / "out")["results"]
    assert {name: account["conversations"]["kept"] for name, account in results["sources"].items()} == {
        "x/raw.json": 1,
        "y/raw.json": 2,
    }


def test_prompts_of_an_evaluation_are_kept_out(command, source, tmp_path) -> None:
    question = json.loads(source.read_text())[0]["conversations"][0]["value"]
    (tmp_path / "prompts.txt").write_text(f"{question}\n\nsomething else\n")
    assert command("--source", source, "--set", f'corpus.decontaminate=["{tmp_path}/prompts.txt"]') == 0
    account = read_manifest(tmp_path / "out")["results"]["sources"]["raw.json"]
    assert account["conversations"]["dropped"] == {"contaminated": 1}
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--source", "none.json"], 2, "there is no file none.json"),
        (["--source", "{tmp}/text.json"], 1, "starts with 'just text': expected JSON"),
        (["--source", "{tmp}/strange.json"], 1, "is in no known format: found an object with the keys 'prompt'"),
        (["--source", "{tmp}/empty.json"], 1, "is empty"),
        (
            ["--source", "{tmp}/unasked.json"],
            1,
            "of 2 conversations 2 were dropped (no question with an answer is left), and of 2 turns 2 (",
        ),
        (
            ["--source", "{tmp}/good.json", "--set", "corpus.max_length=9"],
            1,
            "exceeds the token limit); raise corpus.max_length, or set corpus.over_long to truncate",
        ),
        (["--source", "{tmp}/good.json", "--set", "corpus.template=x"], 2, "no template 'x'"),
        (["--source", "{tmp}/good.json", "--set", "corpus.val_fraction=1.5"], 2, "at most 1,"),
        (["--source", "{tmp}/good.json", "--set", "corpus.identity_repeat=0"], 2, "expected at least 1"),
        (["--set", "corpus.identity_name=Ada"], 2, "identity_organisation is empty"),
        (["--source", "{tmp}/good.json", "--set", "corpus.colour=1"], 2, "unknown key corpus.colour"),
        (["--source", "{tmp}/good.json", "{tmp}/good.json"], 2, "two sources have the same name"),
        (
            ["--set", 'corpus.source=[{path="{tmp}/good.json", share=2.0}]'],
            2,
            "expected a number above 0 and at most 1",
        ),
        (["--set", 'corpus.source=[{path="{tmp}/good.json", weight=-1}]'], 2, "expected at least 0 and"),
        (["--set", 'corpus.source=[{path="{tmp}/good.json", format="x"}]'], 2, "no format 'x'"),
        (["--set", 'corpus.source=[{path="{tmp}/good.json", format="dolly"}]'], 1, "is not in the given format"),
        (["--set", "corpus.source=[{share=0.5}]"], 2, "has no path"),
        (["--set", 'corpus.sources=["{tmp}/good.json"]'], 2, "write one [[corpus.source]] table per source"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.replace=["( => x"]'], 2, "is not a regular expression"),
        (["--source", "{tmp}/good.json", "--set", "corpus.repeated_digits=1"], 2, "expected 0 (off), or 2 or more"),
        (["--source", "{tmp}/good.json", "--set", "corpus.near_threshold=2.0"], 2, "above 0 and at most 1"),
        (["--source", "{tmp}/good.json", "--set", "corpus.rounds=-1"], 2, "expected at least 0"),
        (["--source", "{tmp}/good.json", "--set", 'corpus.decontaminate=["none.txt"]'], 2, "there is no file none.txt"),
        (["--source", "{tmp}/good.json", "--tokenizer", "{tmp}"], 2, "has no tokenizer.json"),
        (["--source", "{tmp}/good.json", "--show", "0"], 2, "expected 1 or more"),
        (["--source", "{tmp}/good.json", "--show", "1", "--json"], 2, "--show prints text"),
        ([], 2, "corpus.source is empty: pass --source FILE"),
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
    left = {path.name for path in tmp_path.iterdir()} - {f"{name}.json" for name in files}
    assert left == ({"out-dropped"} if "nothing is left" in error else set())

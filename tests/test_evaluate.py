"""A run is evaluated: base beside tuned, by transformers' own loss, and only if its files are intact."""

import dataclasses
import errno
import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from recipe import evaluate, provenance
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.lineage import verify_all
from recipe.core.run import Run
from recipe.model.load import load_tokenizer
from recipe.training import dataset


def test_evaluate_compares_base_and_tuned(trained_run, capsys):
    config, run = trained_run
    folder = run.folder
    assert evaluate.main(["--run", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((folder / "eval.json").read_text())
    assert result["tuned"]["loss"] < result["base"]["loss"]
    assert [answer["question"] for answer in result["answers"]] == list(config.evaluate.prompts)
    assert "identity" not in result
    assert (folder / "samples.md").read_text().count("**tuned**") == 2
    assert evaluate.main(["--run", str(folder)]) == 0
    assert "exists already" in capsys.readouterr().err
    assert evaluate.main(["--run", str(folder), "--set", 'evaluate.prompts=["Hm?"]']) == 0
    assert "exists already" not in capsys.readouterr().err


def test_the_scores_are_those_of_transformers_own_loss(trained_run, tiny_base):
    """Loss, perplexity and bits per byte once more, one conversation at a time, with nothing of ours but the ids."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config, run = trained_run
    folder = run.folder
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, precision="fp32"))
    result = evaluate.run(config, run)
    rows = dataset.encode_file(Path(config.corpus.path) / "val.jsonl", load_tokenizer(tiny_base), "vicuna_v1.1")
    base = AutoModelForCausalLM.from_pretrained(tiny_base, torch_dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, folder / "adapter").eval()
    nats = tokens = 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += tuned(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item() * count
        tokens += count
    size = sum(
        len(message["content"].encode())
        for line in (Path(config.corpus.path) / "val.jsonl").read_text().splitlines()
        for message in json.loads(line)["messages"]
        if message["role"] == "assistant"
    )
    assert result["tuned"]["tokens"] == tokens
    assert result["tuned"]["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert result["tuned"]["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert result["tuned"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_evaluating_an_unfinished_run_is_one_sentence(trained_run, capsys):
    config, run = trained_run
    run.manifest_file.unlink()  # what a run that was killed has not left yet
    assert entry(lambda: evaluate.main(["--run", str(run.folder)])) == 1
    assert "did not finish" in capsys.readouterr().err
    assert entry(lambda: evaluate.main(["--run", str(config.runs)])) == 2
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["corpus", "base", "adapter"])
def test_altered_inputs_are_refused(trained_run, tmp_path, what, capsys):
    """Manifests alone are not enough: the files themselves must be what they were."""
    config, run = trained_run
    copies = {name: tmp_path / "inputs" / name for name in ("corpus", "base")}
    for name, path in copies.items():
        shutil.copytree(getattr(config, name).path, path)
    file = {
        "corpus": copies["corpus"] / "val.jsonl",
        "base": copies["base"] / "model.safetensors",
        "adapter": run.adapter / "adapter_model.safetensors",
    }[what]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    arguments = [f"--set={name}.path={path}" for name, path in copies.items()]
    assert entry(lambda: evaluate.main(["--run", str(run.folder), *arguments])) == 1
    message = capsys.readouterr().err
    assert f"{file.name} was altered" in message and "re-create " in message
    assert not run.eval_json.exists() and not list(copies["base"].parent.glob("base-*")), "no copy of altered weights"


def test_a_folder_that_cannot_be_written_is_refused_first(trained_run, monkeypatch, capsys):
    config, run = trained_run
    monkeypatch.setattr("recipe.model.open.open_run", lambda *args: pytest.fail("the model was loaded"))

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert entry(lambda: bool(evaluate.run(config, run))) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and str(run.folder) in message


def test_a_strange_eval_json_is_evaluated_again(trained_run):
    config, run = trained_run
    for file in (run.samples, run.eval_losses):
        file.write_text("x")
    for text in ("", "[]", '{"provenance": 1}'):
        run.eval_json.write_text(text)
        assert evaluate.find_earlier(config, run, {"config": {}, "inputs": {}}) is None
    assert evaluate.run(config, run)["answers"]


def test_texts_choices_and_instructions_are_scored_on_request(trained_run, tmp_path, capsys):
    config, run = trained_run
    text, quiz = tmp_path / "notes.txt", tmp_path / "quiz.jsonl"
    text.write_text("The sky is blue.\n\nThe grass is green, and the sea is wide.")
    quiz.write_text(json.dumps({"question": "Which colour?", "choices": ["blue", "green"], "answer": 0}) + "\n")
    wanted = dataclasses.replace(config.evaluate, texts=(str(text),), choices=(str(quiz),), instructions=True)
    result = evaluate.run(dataclasses.replace(config, evaluate=wanted), run)
    found = result["texts"]["notes.txt"]["bits_per_byte"]
    base, tuned, difference = (found[name][0] for name in ("base", "tuned", "difference"))
    assert base > 0 and difference == pytest.approx(tuned - base)
    assert result["choices"]["quiz.jsonl"]["questions"] == 1
    assert result["choices"]["quiz.jsonl"]["accuracy"]["base"][0] in (0, 1)
    assert result["instructions"]["prompts"] == 60 and len(result["answers"]) == 62
    assert result["forgetting"]["worse"] == (result["forgetting"]["difference"][1] > 0)
    assert str(tmp_path) not in json.dumps(result["provenance"])
    text.write_text("Something else.")
    again = evaluate.run(dataclasses.replace(config, evaluate=wanted), run)
    assert again["texts"] != result["texts"]


def test_a_missing_quiz_is_one_sentence(trained_run, tmp_path, capsys):
    _, run = trained_run
    missing = tmp_path / "none.jsonl"
    assert entry(lambda: evaluate.main(["--run", str(run.folder), "--set", f'evaluate.choices=["{missing}"]'])) == 1
    assert f"{missing} does not exist" in capsys.readouterr().err and not run.eval_json.exists()


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(trained_run, monkeypatch, capsys):
    from recipe.evaluation import scoring
    from recipe.model import generate

    config, run = trained_run
    whole = evaluate.run(config, run)
    saved = run.eval_json.read_bytes()
    for file in (run.eval_json, run.eval_parts):
        file.unlink()
    calls = []

    def stop_after(count, real):
        def call(*arguments):
            if len(calls) == count:
                raise KeyboardInterrupt
            calls.append(real.__name__)
            return real(*arguments)

        return call

    real = scoring.pack_token_nll, generate.generate
    for count in (3, 9):  # once while losses are computed, once later
        monkeypatch.setattr(scoring, "pack_token_nll", stop_after(count, real[0]))
        monkeypatch.setattr(generate, "generate", stop_after(count, real[1]))
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(config, run)
        assert not run.eval_json.exists() and len(calls) == count
    monkeypatch.setattr(scoring, "pack_token_nll", stop_after(-1, real[0]))
    monkeypatch.setattr(generate, "generate", stop_after(-1, real[1]))
    assert evaluate.run(config, run) == whole and run.eval_json.read_bytes() == saved
    parts = len(run.eval_parts.read_text().splitlines()) - 1
    assert len(calls) == parts, "nothing was computed twice"
    assert "finished parts of an earlier evaluation" in capsys.readouterr().err
    run.record("config.toml")  # the fixture wrote its paths anew
    assert provenance.main(["verify", str(run.folder)]) == 0


def test_people_vote_blind_and_the_votes_are_counted(trained_run, tmp_path, capsys):
    _, run = trained_run
    assert entry(lambda: evaluate.main(["--run", str(run.folder), "--votes", "none"])) == 1
    assert "--vote` first" in " ".join(capsys.readouterr().err.split())
    less = ["--set", "evaluate.max_new_tokens=2"]
    assert evaluate.main(["--run", str(run.folder), "--vote", *less]) == 0
    assert "vote.html" in capsys.readouterr().out
    shown = [json.loads(line) for line in run.comparisons.read_text().splitlines()]
    assert len(shown) == 160
    votes = tmp_path / "votes.jsonl"
    votes.write_text("".join(json.dumps({"id": pair["id"], "vote": "first"}) + "\n" for pair in shown[::2]))
    assert evaluate.main(["--run", str(run.folder), "--votes", str(votes), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(run.votes.read_text()) and found["votes"] == 80
    low, high = found["tuned"][1:]
    assert low < 0.5 < high, "always the first answer: no model wins"
    assert evaluate.main(["--run", str(run.folder), "--vote", *less]) == 0
    assert "exists already" in capsys.readouterr().err
    run.vote_page.write_text("changed")
    assert evaluate.main(["--run", str(run.folder), "--vote", *less]) == 0
    assert "exists already" not in capsys.readouterr().err and run.vote_page.read_text() != "changed"


def test_a_split_conversation_counts_its_answers_on():
    import numpy as np

    from recipe.evaluation.losses import read_scored

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "val.jsonl"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
        file.write_text("".join(json.dumps({"id": f"c#{number}", "messages": turns}) + "\n" for number in range(2)))
        labels = [[-100, 5, -100, 6]] * 2
        losses = [np.ones(2, np.float32)] * 2
        found = read_scored(file, labels, losses, losses)
    assert [item.turns for item in found] == [[1, 2], [3, 4]] and {item.conversation for item in found} == {"c"}


@pytest.mark.parametrize(
    ("setting", "name", "content", "message"),
    [
        ("choices", "quiz.jsonl", '{"q": 1}', "line 1"),
        ("choices", "quiz.jsonl", "", "holds no question"),
        ("texts", "notes.txt", " ", "is empty"),
        ("texts", "talk.json", '[{"a": 1}]', "no known format"),
    ],
)
def test_a_bad_file_is_one_sentence_before_the_model_is_loaded(
    trained_run, tmp_path, monkeypatch, capsys, setting, name, content, message
):
    _, run = trained_run
    monkeypatch.setattr("recipe.model.open.open_run", lambda *args: pytest.fail("the model was loaded"))
    (tmp_path / name).write_text(content)
    arguments = ["--run", str(run.folder), "--set", f'evaluate.{setting}=["{tmp_path / name}"]']
    assert entry(lambda: evaluate.main(arguments)) == 1
    assert message in capsys.readouterr().err


def test_a_run_without_its_adapter_is_one_sentence(trained_run, capsys):
    _, run = trained_run
    shutil.rmtree(run.adapter)
    assert entry(lambda: evaluate.main(["--run", str(run.folder)])) == 1
    message = capsys.readouterr().err
    assert "is missing; re-create" in message and "adapter/" in message


def test_a_batch_of_answers_takes_no_more_memory_than_a_training_pack():
    from recipe.evaluation.suite import BATCH, batch_size

    assert batch_size(156, 2048) == BATCH and batch_size(1084, 2048) == 7 and batch_size(99_999, 2048) == 1


def test_what_a_killed_process_did_not_record_is_recorded(trained_run, monkeypatch):
    config, run = trained_run
    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", lambda *names: None)
        evaluate.run(config, run)
    assert any("in no manifest" in problem for problem in verify_all(run.folder))
    evaluate.run(config, run)
    assert not any("in no manifest" in problem for problem in verify_all(run.folder))


def test_texts_that_change_while_they_are_read_are_an_error(trained_run, tmp_path):
    config, _ = trained_run
    texts = tmp_path / "texts.jsonl"
    texts.write_text("one")
    asked = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, texts=(str(texts),)))
    provenance = {"inputs": evaluate.hash_inputs(evaluate.asked_files(asked))}
    evaluate.check_asked(asked, provenance)
    texts.write_text("two")
    with pytest.raises(RecipeError, match=r"texts\.jsonl was written to while it was read"):
        evaluate.check_asked(asked, provenance)


def test_the_evaluation_names_its_threads(evaluated_run):
    _, run = evaluated_run
    assert json.loads(run.eval_json.read_text())["provenance"]["threads"] == torch.get_num_threads()

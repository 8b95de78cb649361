"""What is shipped is what was judged: the loss of every format, against transformers, peft and the evaluation."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from recipe import evaluate, merge
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.evaluation import exports

TARGETS = ("hf", "meta", "gguf", "gguf-q8_0", "gguf-q4_0", "gguf-lora")


@pytest.fixture(scope="module")
def exported(trained_once, tmp_path_factory):
    """A finished run in several formats, and what was judged of them."""
    import dataclasses

    runs = tmp_path_factory.mktemp("exported") / "runs"
    shutil.copytree(trained_once.runs, runs, symlinks=True)
    config = dataclasses.replace(trained_once, runs=str(runs))
    run = Run(Run.latest(config).resolve())
    run.begin(config)
    for to in TARGETS:
        merge.run(config, run.folder, to)
    return config, run, evaluate.judge_exports(config, run)


def test_the_model_as_trained_is_the_one_that_evaluate_judges(exported):
    config, run, result = exported
    judged = evaluate.run(config, run)
    assert result["models"][0]["loss"] == pytest.approx(judged["intervals"]["loss"]["tuned"], rel=1e-5)
    assert result["models"][0]["difference"] == [0, 0, 0]


def test_every_written_format_is_read_from_its_files(exported):
    result = exported[2]
    names = [row["name"] for row in result["models"]]
    assert names[3:] == ["gguf", "gguf-lora beside the base", "gguf-q4_0", "gguf-q8_0", "meta"]
    assert [row["bytes"] is None for row in result["models"][:3]] == [True, False, True]
    losses = {row["name"]: row["loss"][0] for row in result["models"]}
    assert losses["gguf"] == losses["meta"] == losses["merge into the base (hf)"]
    assert losses["gguf-q4_0"] != losses["gguf"]
    assert losses["gguf-lora beside the base"] == pytest.approx(losses["gguf"], abs=1e-3)


def test_the_loss_of_a_merged_folder_is_that_of_transformers(exported):
    """Sample by sample with transformers' own attention and cross entropy: nothing of this recipe computes it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe.training.dataset import encode_file

    config, run, result = exported
    model = AutoModelForCausalLM.from_pretrained(run.merged(), torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.merged())
    nats = tokens = 0
    for row in encode_file(Path(config.corpus.path) / "val.jsonl", tokenizer, config.corpus.template):
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        with torch.no_grad():
            count = int((labels[:, 1:] != -100).sum())
            nats, tokens = nats + float(model(ids, labels=labels).loss) * count, tokens + count
    assert result["models"][1]["loss"][0] == pytest.approx(nats / tokens, rel=1e-5)
    assert sum(result["models"][1]["tokens"]) == tokens


def test_the_merge_into_the_int8_base_is_that_of_peft_on_it(exported):
    """peft merges into a plain model whose weights were rounded to int8 beforehand."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from recipe.model.exports import find_exports
    from recipe.pascal import int8

    config, run, _ = exported
    base = AutoModelForCausalLM.from_pretrained(config.base.path, torch_dtype=torch.float32)
    for name, parameter in base.named_parameters():
        if name.endswith("proj.weight"):
            parameter.data = int8.dequantize(*int8.quantize(parameter.data), torch.float32)
    merged = PeftModel.from_pretrained(base, run.adapter).merge_and_unload().state_dict()
    export = list(find_exports(run, config))[2]
    for name, tensor in export.tensors.items():
        torch.testing.assert_close(tensor.read().float(), merged[name], rtol=1e-3, atol=1e-3)


def test_a_second_time_only_what_is_new_is_judged(exported, capsys, monkeypatch):
    config, run, result = exported
    merge.run(config, run.folder, "gguf-q5_0")
    scored = []
    real = exports.stream_token_nll
    monkeypatch.setattr(exports, "stream_token_nll", lambda *args: scored.append(args[-1]) or real(*args))
    again = evaluate.judge_exports(config, run)
    assert scored == ["gguf-q5_0"] and len(again["models"]) == len(result["models"]) + 1
    kept = {row["name"]: row for row in again["models"]}
    assert all(kept[row["name"]] == row for row in result["models"])
    run.exports.write_text(run.exports.read_text().replace("1", "2"))  # not as recorded: judged anew
    assert [row["nats"] for row in evaluate.judge_exports(config, run)["models"]] == [
        row["nats"] for row in again["models"]
    ]
    assert len(scored) == 1 + len(again["models"])
    shutil.rmtree(run.folder / "merged-gguf-q5_0")


def test_the_table_and_a_stale_file(exported, capsys):
    _, run, result = exported
    assert evaluate.main(["--run", str(run.folder), "--exports"]) == 0
    printed = capsys.readouterr().out
    assert f"{result['models'][1]['loss'][0]:.4f}" in printed and "gguf-q4_0" in printed
    assert evaluate.main(["--run", str(run.folder), "--exports", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["models"]] == [
        row["name"] for row in result["models"]
    ]
    file = next((run.folder / "merged-gguf-q8_0").glob("*.gguf"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert entry(lambda: evaluate.main(["--run", str(run.folder), "--exports"])) == 1
    assert "was altered" in capsys.readouterr().err
    file.write_bytes(whole)


def test_a_base_that_was_altered_beside_its_int8_copy_is_refused(exported, capsys):
    config, run, _ = exported
    weights = next(Path(config.base.path).glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert entry(lambda: evaluate.main(["--run", str(run.folder), "--exports"])) == 1
    finally:
        weights.write_bytes(whole)
    assert "was altered" in capsys.readouterr().err


def test_the_report_shows_the_table_and_refuses_an_altered_one(exported, capsys):
    from recipe import report

    config, run, result = exported
    evaluate.judge_exports(config, run)
    assert report.main(["--run", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "What was shipped" in page and f"{result['models'][4]['loss'][0]:.4f}" in page
    whole = run.exports.read_text()
    run.exports.write_text(whole.replace("gguf-q4_0", "gguf-q9_9"))
    assert entry(lambda: report.main(["--run", str(run.folder)])) == 1
    assert "exports.json was altered" in capsys.readouterr().err
    run.exports.write_text(whole)


def test_what_was_merged_from_another_adapter_is_refused(trained_run):
    from recipe.core.manifest import read_manifest, save_manifest

    config, run = trained_run
    merge.run(config, run.folder, "hf")
    manifest = read_manifest(run.merged())
    save_manifest(run.merged() / "manifest.json", manifest | {"inputs": {**manifest["inputs"], "run": "0" * 64}})
    with pytest.raises(RecipeError, match="is not the run that"):
        evaluate.judge_exports(config, run)


def test_samples_are_drawn_whole_up_to_a_number_of_tokens():
    names, lengths = [f"c{number}" for number in range(100)], [10] * 100
    assert exports.choose_samples(names, lengths, 10_000) == list(range(100))
    drawn = exports.choose_samples(names, lengths, 205)
    assert len(drawn) == 20 and drawn == sorted(drawn) and drawn != list(range(20))
    assert exports.choose_samples(names[::-1], lengths, 205) == sorted(99 - number for number in drawn)
    assert len(exports.choose_samples(names, [1000] * 100, 999)) == 1, "never none"


def test_the_smallest_equal_format_is_recommended():
    def row(name, size, high, alone=True):
        return {"name": name, "bytes": size, "difference": [0.0, -high, high], "alone": alone}

    models = [row("trained", None, 0, False), row("hf", 100, 0.001), row("q8_0", 50, 0.009), row("q4_0", 25, 0.02)]
    models.append(row("gguf-lora", 1, 0.0, False))
    assert exports.recommend(models) == "q8_0"
    assert exports.recommend(models[:1]) == ""

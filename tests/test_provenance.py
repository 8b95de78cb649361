"""Artefacts against their manifests: what is altered, unlisted, traced back, different."""

import json
import shutil
from pathlib import Path

import pytest

from recipe import evaluate, provenance, report, train
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.core.lineage import compare, trace, verify_all
from recipe.core.manifest import read_manifest
from recipe.core.run import Run


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, evaluated."""
    from recipe.core.config import Base, Config, Corpus, Evaluate, Lora, Source, Train

    config = Config(
        name="tiny",
        runs=str(tmp_path_factory.mktemp("runs")),
        base=Base(path=str(tiny_base)),
        corpus=Corpus(
            source=(Source(path=str(tiny_corpus.parent / "raw.json")),), path=str(tiny_corpus), max_length=256
        ),
        lora=Lora(rank=2, alpha=4),
        train=Train(epochs=1.0, micro_batch_tokens=512, gradient_accumulation_steps=1, save_steps=2, eval_steps=0),
        evaluate=Evaluate(prompts=("Who are you?",), max_new_tokens=4),
    )
    train.run(config)
    opened = Run.open(Run.latest(config))
    evaluate.run(config, opened)
    return opened.folder.resolve()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_is_covered_completely(run):
    assert verify_all(run) == []
    assert set(Run(run).records()) >= {"config.toml", "metrics.jsonl", "eval.json", "samples.md"}


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "eval.json", "samples.md"])
def test_every_changed_file_of_a_run_is_named(run, name):
    with open(run / name, "a") as file:
        file.write("\n")
    assert [problem for problem in verify_all(run) if f"{name} has" in problem]


def test_a_file_in_no_manifest_is_named(run):
    checkpoint = next((run / "checkpoints").iterdir())
    for place in (run, run / "adapter", checkpoint):
        (place / "extra.bin").write_text("x")
    problems = verify_all(run)
    assert len(problems) == 3 and all("extra.bin is in no manifest" in problem for problem in problems)


def test_settings_that_the_run_was_not_trained_with_are_named(run):
    text = (run / "config.toml").read_text().replace("alpha = 4", "alpha = 8")
    (run / "config.toml").write_text(text)
    (run / "records.json").unlink()
    assert any("config.toml differs from the manifest in lora.alpha: 8 != 4" in problem for problem in verify_all(run))


def test_a_forged_loss_is_not_reported(run, capsys):
    text = (run / "eval.json").read_text()
    result = json.loads(text)
    result["tuned"]["loss"] = 0.001
    (run / "eval.json").write_text(json.dumps(result))
    assert entry(lambda: report.main(["--run", str(run)])) == 1
    assert "eval.json has" in capsys.readouterr().err
    (run / "records.json").unlink()
    assert entry(lambda: report.main(["--run", str(run)])) == 1
    assert "eval.json is not in" in capsys.readouterr().err


def test_inputs_are_traced_back_to_raw_files(run, capsys):
    links = list(trace(run))
    assert {link.name for link in links} >= {"base", "corpus"} and any("raw.json" in link.name for link in links)
    raw = [link for link in links if "raw.json" in link.name or link.name in ("base", "corpus")]
    assert all(link.matches for link in raw)
    assert provenance.main(["verify", str(run)]) == 0
    assert "intact" in capsys.readouterr().out


def test_an_altered_raw_file_is_found_deep(run, tmp_path, capsys):
    config = Run(run).config()
    raw = Path(config.corpus.source[0].path)
    before = raw.read_bytes()
    try:
        raw.write_bytes(before + b" ")
        assert provenance.main(["verify", "--deep", str(run)]) == 1
        assert "altered" in capsys.readouterr().out
    finally:
        raw.write_bytes(before)


def test_diff_says_which_part_differs_and_what_it_can_change(run, tmp_path, capsys):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    assert provenance.main(["diff", str(run), str(other)]) == 0
    manifest = read_manifest(other)
    manifest["config"]["train"]["seed"] = 1
    manifest["inputs"]["corpus"] = "0"
    manifest["code"] = "1"
    manifest["results"]["threads"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert provenance.main(["diff", str(run), str(other)]) == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "differs  yes" in rows["config"] and "differs  yes" in rows["data"]
    assert "perhaps" in rows["code"] and "same" in rows["weights"] and "same" in rows["environment"]
    assert "differs  perhaps in the last bits" in rows["hardware"] and "same" in rows["results"]
    assert set(compare(read_manifest(run), manifest)) == {"config", "data", "code", "hardware"}
    manifest["hardware"]["gpu"] = "Tesla P100-PCIE-16GB"
    assert len(compare(read_manifest(run), manifest)["hardware"]) == 2


def test_a_file_beside_weights_that_no_manifest_lists_is_named(tiny_base, tmp_path, capsys):
    folder = tmp_path / "weights"
    shutil.copytree(tiny_base, folder)
    assert provenance.main(["verify", str(folder)]) == 0
    (folder / "a.safetensors").write_bytes(b"")
    assert provenance.main(["verify", str(folder)]) == 1
    assert "a.safetensors is in no manifest" in capsys.readouterr().out


def test_damaged_records_stop_training_before_its_first_step(trained_run):
    config, run = trained_run
    run.manifest_file.unlink()  # killed just before the end
    records = run.folder / "records.json"
    records.write_text(records.read_text().replace("metrics", "metricz"))
    with pytest.raises(RecipeError, match=r"records.json is damaged: restore a copy"):
        train.run(config)
    assert not run.manifest_file.exists()


def test_two_received_runs_that_name_each_other_are_traced_once(run, tmp_path):
    names = ("one", "two")
    for name, other in (names, names[::-1]):
        folder = Path(shutil.copytree(run, tmp_path / name))
        text, replaced = (folder / "config.toml").read_text(), f'\nstart = "{tmp_path / other}"'
        assert text.count('\nstart = ""') == 1
        (folder / "config.toml").write_text(text.replace('\nstart = ""', replaced))
        manifest = read_manifest(folder)
        manifest["inputs"] = {"start": "0"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [link.owner.name for link in trace(tmp_path / "one")] == ["one", "two"]


def test_a_damaged_manifest_inside_does_not_hide_the_rest(run):
    checkpoint = next((run / "checkpoints").glob("checkpoint-*"))
    (checkpoint / "manifest.json").write_text("{")
    (run / "adapter" / "adapter_config.json").write_text("{}")
    problems = "\n".join(verify_all(run))
    assert "adapter_config.json" in problems and str(checkpoint) in problems


def test_what_a_conversion_reads_is_weights(run):
    one = {"stage": "convert", "inputs": {"model.gguf": "1", "config.json": "1"}}
    assert set(compare(one, {**one, "inputs": {"model.gguf": "2", "config.json": "2"}})) == {"weights"}

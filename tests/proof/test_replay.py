"""A run replayed in other surroundings gives the same bits; where it does not, the replay says where and why."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipe import evaluate, provenance, train
from recipe.core.cli import entry
from recipe.core.config import Config, Source
from recipe.core.errors import UsageError
from recipe.core.manifest import read_manifest
from recipe.core.run import Run
from recipe.evaluation import texts
from recipe.proof import replay as replays
from tests.faults.longform import carry_on

ROOT = Path(__file__).parents[2]
ALL_PASSAGES = texts.PROBE_PASSAGES
REPLAYS = int(os.environ.get("REPLAYS", "0"))  # more than one, in surroundings drawn at random; counted in results.json


@pytest.fixture(scope="module")
def original(tmp_path_factory, trained_once, tiny_corpus) -> Config:
    """A finished and evaluated run on one thread, whose corpus was prepared from a file."""
    source = Source(path=str(tiny_corpus.parent / "raw.json"))
    corpus = dataclasses.replace(trained_once.corpus, source=(source,), val_fraction=0.2)
    config = dataclasses.replace(trained_once, corpus=corpus, runs=str(tmp_path_factory.mktemp("original")))
    train.run(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PROBE_PASSAGES", ALL_PASSAGES)  # the stages of a replay score them all
        evaluate.run(config, Run.open(Run.latest(config)))
    return config


def command(original: Config, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "recipe.provenance", "--json", "replay", "--run", str(Run.latest(original))]
    words += ["--into", str(folder), *options]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(words, cwd=folder.parent, env=given, capture_output=True, text=True)


def draw(number: int) -> tuple[str, dict[str, str]]:
    """Worker processes and environment of a replay; the same number gives the same."""
    rng = random.Random(number)
    locale, zone = (
        rng.choice(["C", "C.UTF-8", "POSIX", "de_DE.UTF-8", ""]),
        rng.choice(["UTC", "Asia/Tokyo", "America/Lima"]),
    )
    seed, columns = str(rng.randrange(2**32)), str(rng.randrange(20, 300))
    return str(rng.randint(1, 5)), {"PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone, "COLUMNS": columns}


@pytest.mark.skipif(not REPLAYS, reason="REPLAYS=20 counts equal replays; one is always made below")
def test_many_replays_are_equal(original, tmp_path):
    def attempt(number: int) -> tuple[str, str]:
        processes, surroundings = draw(number)
        home, folder = tmp_path / f"home {number}", tmp_path / f"replay {number}"
        home.mkdir()
        done = command(original, folder, "--set", f"corpus.processes={processes}", HOME=str(home), **surroundings)
        shutil.rmtree(folder, ignore_errors=True)
        verdict = json.loads(done.stdout)["verdict"] if done.stdout else "failed"
        return verdict, "" if verdict == "equal" else done.stdout + done.stderr[-1000:]

    found = carry_on(Path(__file__).with_name("results.json"), range(REPLAYS), "replays of a tiny run", attempt)
    assert not found["problems"]


@pytest.mark.slow
def test_other_folder_home_locale_hash_seed_and_processes_give_the_same_bits(original, tmp_path, monkeypatch, capfd):
    """The stages of the replay are processes of their own; this one only compares."""
    surroundings = {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "HOME": str(tmp_path), "COLUMNS": "40"}
    for name, value in {"PYTHONHASHSEED": "7", **surroundings}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "another folder"
    command = ["--json", "replay", "--run", str(Run.latest(original)), "--into", str(folder)]
    assert provenance.main([*command, "--set", "corpus.processes=2"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["verdict"] == "equal" and not result["reasons"]
    again = next((folder / "runs" / "tiny").glob("[0-9a-f]*"))
    assert again.name == Run.latest(original).resolve().name
    assert (again / "manifest.json").read_bytes() == (Run.latest(original) / "manifest.json").read_bytes()
    assert json.loads((folder / "replay.json").read_text()) == result
    assert entry(lambda: provenance.main(command)) == 2, "a finished replay is not taken for a new one"


def test_a_setting_that_changes_a_result_is_refused(original, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"--set changes train\.seed: 0 != 1"):
        provenance.main(
            ["replay", "--run", str(Run.latest(original)), "--into", str(tmp_path / "x"), "--set", "train.seed=1"]
        )
    assert not (tmp_path / "x").exists()


def test_only_a_clean_folder_is_used(original, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="is not empty, expected a clean folder"):
        replays.replay(Run(Run.latest(original).resolve()), original, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def pair(original, tmp_path) -> tuple[Run, Run]:
    """The run, and a copy to change."""
    folder = Run.latest(original).resolve()
    return Run(folder), Run(Path(shutil.copytree(folder, tmp_path / folder.name)))


def change(run: Run, **parts: dict) -> None:
    manifest = read_manifest(run.folder)
    for part, values in parts.items():
        manifest[part] |= values
    run.manifest_file.write_text(json.dumps(manifest))


def judged(original: Config, pair: tuple[Run, Run]) -> dict:
    corpus = Path(original.corpus.path)
    return replays.judge(*pair, corpus, corpus)


def test_the_same_machine_must_give_the_same_bits(original, pair):
    assert judged(original, pair)["verdict"] == "equal"
    loss = read_manifest(pair[0].folder)["results"]["validation_loss"]
    change(pair[1], results={"validation_loss": loss * (1 + 1e-9)})
    result = judged(original, pair)
    assert result["verdict"] == "outside" and not result["reasons"]
    assert "should have been the same bits" in replays.describe(result)


@pytest.mark.parametrize(
    "parts",
    [
        {"hardware": {"cpu": "another"}},
        {"results": {"threads": 64}},
        {"results": {"processes": 2}},
        {"results": {"resumed_from": [[64, 1]]}},
        {"environment": {"torch": "9"}},
    ],
)
def test_elsewhere_the_loss_must_be_within_the_band(original, pair, parts):
    loss = read_manifest(pair[0].folder)["results"]["validation_loss"]
    change(pair[1], **parts)
    change(pair[1], results={"validation_loss": loss * (1 + 0.9 * replays.BAND)})
    result = judged(original, pair)
    assert result["verdict"] == "inside" and result["reasons"]
    change(pair[1], results={"validation_loss": loss * (1 + 1.1 * replays.BAND)})
    assert judged(original, pair)["verdict"] == "outside"


def test_an_operation_that_torch_cannot_make_deterministic_opens_the_band(original, pair):
    loss = read_manifest(pair[0].folder)["results"]["validation_loss"]
    for run in pair:
        change(run, results={"nondeterministic": ["Memory Efficient attention"]})
    change(pair[1], results={"validation_loss": loss * 1.001})
    try:
        assert judged(original, pair)["verdict"] == "inside"
    finally:
        change(pair[0], results={"nondeterministic": []})


def test_another_corpus_is_never_excused(original, pair, tmp_path):
    corpus = Path(original.corpus.path)
    other = Path(shutil.copytree(corpus, tmp_path / "other"))
    manifest = read_manifest(other)
    manifest["outputs"]["train.jsonl"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    change(pair[1], hardware={"cpu": "another"})
    result = replays.judge(*pair, corpus, other)
    assert result["verdict"] == "outside" and "train.jsonl" in result["differences"]["corpus"][0]


def test_the_first_step_that_differs_is_named(original, pair):
    lines = pair[1].metrics.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[1]["loss"] += 1
    pair[1].metrics.write_text("\n".join(map(json.dumps, rows)))
    assert judged(original, pair)["differences"]["losses of steps"][0].startswith("step 2: loss")

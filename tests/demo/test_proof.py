"""A shortened demo is replayed in other surroundings and bundled; other programs judge its statements."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipe" / "configs" / "demo.toml"
PROOF = ROOT / "tests" / "proof"
PYTHON = os.environ.get("RECIPE_PYTHON", sys.executable)
SHORT = 0.4  # epochs: the whole demo has 3, and a replay takes as long as the run


def stage(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    command = [PYTHON, "-m", *map(str, words)]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The demo with fewer steps, on its real model."""
    stage("recipe.fetch", "smollm2-135m-instruct")
    for name in ("convert", "corpus"):
        stage(f"recipe.{name}", "--config", CONFIG)
    runs = tmp_path_factory.mktemp("runs")
    stage("recipe.train", "--config", CONFIG, "--set", f"train.epochs={SHORT}", "--set", f"runs={runs}")
    return runs / "demo" / "latest"


def test_a_replay_in_another_folder_home_locale_hash_seed_and_number_of_processes_is_equal(run, tmp_path):
    """And with another working directory, into which the base and the raw conversations were copied."""
    place = tmp_path / "another place"
    (place / "weights").mkdir(parents=True)
    shutil.copytree(ROOT / "weights" / "smollm2-135m-instruct", place / "weights" / "smollm2-135m-instruct")
    raw = Path("recipe") / "configs" / "demo_conversations.json"
    (place / raw).parent.mkdir(parents=True)
    shutil.copy(ROOT / raw, place / raw)
    surroundings = {"HOME": str(tmp_path), "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    options = ["--run", run, "--into", "replayed", "--set", "corpus.processes=1"]
    printed = stage("recipe.provenance", "--json", "replay", *options, cwd=place, PYTHONSAFEPATH="1", **surroundings)
    result = json.loads(printed)
    assert result["verdict"] == "equal", result
    print(f"demo: replayed {SHORT} epochs, validation loss {result['validation_loss']}")


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "demo.zip"
    stage("recipe.provenance", "bundle", "--run", run, "--output", file)
    return file


def test_the_bundle_verifies_itself_without_any_package(bundle):
    done = subprocess.run([sys.executable, "-S", "-E", str(bundle)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("intact")


def test_the_validators_of_ro_crate_and_in_toto_accept_it(bundle, tmp_path):
    folder, python = tmp_path / "bundle", tmp_path / "venv" / "bin" / "python"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    locks = [word for name in ("validators", "context") for word in ("-r", str(PROOF / f"{name}.lock"))]
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([str(python), "-m", "pip", "install", *options, *locks], check=True)
    check = [str(python), str(PROOF / "validators.py"), str(folder)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, old, new, wanted in (
        ("ro-crate-metadata.json", '"license"', '"licence"', "RO-Crate: "),
        ("statement.intoto.json", '"subject"', '"object"', "in-toto: "),
    ):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
        done = subprocess.run(check, capture_output=True, text=True)
        assert done.returncode == 1 and wanted in done.stdout, done.stdout + done.stderr

"""Two runs of one config leave the same bytes: another hash seed, folder, locale and umask change nothing."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from recipe import train
from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.files import sha256
from recipe.core.run import Run
from recipe.training.resume import list_checkpoints

ROOT = Path(__file__).parents[2]
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STRANGER = 54321  # a user and group without an account or a home, as `--user` of a container may name
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
SURROUNDINGS = [
    {"PYTHONHASHSEED": "1", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "2", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "HOME": "/nonexistent", "USER": "somebody",
     "COLUMNS": "40"},
]  # fmt: skip


def fingerprints(run: Run) -> dict[str, str]:
    """The sha256 of the run's manifest and of every file of its adapter and checkpoints."""
    folders = [run.adapter, *list_checkpoints(run.checkpoints)]
    files = [run.manifest_file, *(file for folder in folders for file in folder.iterdir())]
    return {str(file.relative_to(run.folder)): sha256(file) for file in files}


def train_in(
    folder: Path, config: Config, surroundings: Mapping[str, str], umask: int = -1, prefix: Sequence[str] = ()
) -> Run:
    """Train in a process of its own with a relative folder for runs; `prefix` starts it, as another user."""
    file = folder / "run.toml"
    file.write_text(configs.dump(config), encoding="utf-8")
    command = [*prefix, sys.executable, "-m", "recipe.train", "--config", str(file), "--set", "runs=runs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **surroundings}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, umask=umask)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return Run((folder / "runs" / "tiny" / "latest").resolve())


@pytest.mark.slow
def test_surroundings_change_no_byte(tiny_run, tmp_path, monkeypatch, one_thread):
    """Those of two other processes, and those of this one with a hash seed that no two test runs share."""
    config = dataclasses.replace(tiny_run, lora=dataclasses.replace(tiny_run.lora, target_modules=MODULES))
    folders = [tmp_path / f"folder {number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    children = zip(folders, SURROUNDINGS, (0, 0o27), strict=False)
    runs = [train_in(folder, config, surroundings, umask=umask) for folder, surroundings, umask in children]
    monkeypatch.chdir(folders[-1])
    config = dataclasses.replace(config, runs="runs")
    before = os.umask(0o56)
    try:
        train.run(config)
    finally:
        os.umask(before)
    found = [fingerprints(run) for run in (*runs, Run(Run.latest(config).resolve()))]
    assert len(found[0]) > 10
    assert found[0] == found[1] == found[2]


def become_stranger() -> list[str]:
    """What starts a program as a user without an account. It may read every file, as the interpreter may be private."""
    if os.getuid():
        pytest.skip("only root can start a process of another user: this comparison was not made")
    capability = "+dac_read_search"
    command = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    command += [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    if not shutil.which("setpriv") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("setpriv cannot start a process of another user here: this comparison was not made")
    return command


@pytest.mark.slow
def test_another_user_with_another_locale_leaves_the_same_bytes(trained_once, tmp_path):
    prefix = become_stranger()
    folder = tmp_path / "stranger"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    surroundings = {**ASCII, "HOME": str(tmp_path / "nowhere"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = train_in(folder, trained_once, surroundings, prefix=prefix)
    assert run.manifest_file.stat().st_uid == STRANGER
    assert fingerprints(run) == fingerprints(Run(Run.latest(trained_once).resolve()))


def test_torch_has_a_deterministic_implementation_of_every_operation_on_a_cpu(tiny_run, monkeypatch):
    """The manifest names those that have none: torch itself raises an error for each of them."""
    torch.use_deterministic_algorithms(True)
    try:
        results = train.run(tiny_run)["results"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert results["nondeterministic"] == []

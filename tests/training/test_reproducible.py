"""Two runs of one config leave the same bytes: another hash seed, folder, locale and umask change nothing."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipe import train
from recipe.core import config as configs
from recipe.core.files import sha256
from recipe.core.run import Run
from recipe.training.resume import list_checkpoints

ROOT = Path(__file__).parents[2]
SURROUNDINGS = [
    {"PYTHONHASHSEED": "1", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "2", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "HOME": "/nonexistent", "USER": "somebody",
     "COLUMNS": "40"},
]  # fmt: skip
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def fingerprints(run: Run) -> dict[str, str]:
    """The sha256 of the run's manifest and of every file of its adapter and checkpoints."""
    folders = [run.adapter, *list_checkpoints(run.checkpoints)]
    files = [run.manifest_file, *(file for folder in folders for file in folder.iterdir())]
    return {str(file.relative_to(run.folder)): sha256(file) for file in files}


@pytest.fixture
def arguments(tiny_run, tmp_path) -> list[str]:
    """Those that train a run with many target modules, in the folder where they are used."""
    lora = dataclasses.replace(tiny_run.lora, target_modules=MODULES)
    file = tmp_path / "run.toml"
    file.write_text(configs.dump(dataclasses.replace(tiny_run, lora=lora, runs="runs")), encoding="utf-8")
    return ["--config", str(file)]


@pytest.mark.slow
def test_surroundings_change_no_byte(arguments, tmp_path, monkeypatch, one_thread):
    """Those of two other processes, and those of this one with a hash seed that no two test runs share."""
    folders = [tmp_path / f"folder {number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    for folder, surroundings, umask in zip(folders, SURROUNDINGS, (0, 0o27), strict=False):
        command = [sys.executable, "-m", "recipe.train", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **surroundings}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, umask=umask)
    monkeypatch.chdir(folders[2])
    before = os.umask(0o56)
    try:
        train.main(arguments)
    finally:
        os.umask(before)
    found = [fingerprints(Run((folder / "runs" / "tiny" / "latest").resolve())) for folder in folders]
    assert len(found[0]) > 10
    assert found[0] == found[1] == found[2]


def test_torch_has_a_deterministic_implementation_of_every_operation_on_a_cpu(tiny_run, monkeypatch):
    """The manifest names those that have none: torch itself raises an error for each of them."""
    torch.use_deterministic_algorithms(True)
    try:
        results = train.run(tiny_run)["results"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert results["nondeterministic"] == []

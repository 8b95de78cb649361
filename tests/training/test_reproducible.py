"""Two runs of one config leave the same bytes: another hash seed, folder, locale and umask change nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import config as configs
from recipe.core.files import sha256
from recipe.core.run import Run
from recipe.training.resume import list_checkpoints

ROOT = Path(__file__).parents[2]
MODULES = '["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'
SURROUNDINGS = [
    {"PYTHONHASHSEED": "1", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "HOME": "/nonexistent"},
    {"PYTHONHASHSEED": "3", "LANG": "de_DE.UTF-8", "USER": "somebody", "COLUMNS": "40"},
]


def fingerprints(run: Run) -> dict[str, str]:
    """The sha256 of the run's manifest and of every file of its adapter and checkpoints."""
    folders = [run.adapter, *list_checkpoints(run.checkpoints)]
    files = [run.manifest_file, *(file for folder in folders for file in folder.iterdir())]
    return {str(file.relative_to(run.folder)): sha256(file) for file in files}


@pytest.mark.slow
def test_surroundings_change_no_byte(tiny_run, tmp_path):
    found = []
    for number, surroundings in enumerate(SURROUNDINGS):
        folder = tmp_path / f"folder {number}"
        folder.mkdir()
        file = folder / "run.toml"
        file.write_text(configs.dump(tiny_run), encoding="utf-8")
        command = [sys.executable, "-m", "recipe.train", "--config", str(file), "--set", "runs=runs"]
        command += [
            "--set",
            'lora.target_modules=["q_proj","k_proj","v_proj","o_proj","gate_proj","up_proj","down_proj"]',
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **surroundings}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, umask=0o27 * number)
        link = folder / "runs" / "tiny" / "latest"
        found.append(fingerprints(Run(link.resolve())))
    assert len(found[0]) > 10
    assert found[0] == found[1] == found[2]


def test_torch_has_a_deterministic_implementation_of_every_operation_on_a_cpu(tiny_run, monkeypatch):
    """The manifest names those that have none: torch itself raises an error for each of them."""
    import torch

    from recipe import train

    torch.use_deterministic_algorithms(True)
    try:
        results = train.run(tiny_run)["results"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert results["nondeterministic"] == []

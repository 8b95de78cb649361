"""Terminals, pipes and locales that are not UTF-8: any text is printed, JSON stays JSON, files stay the same."""

import json
import locale
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.world import STAGES

ROOT = Path(__file__).parents[2]
LOCALES = [
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.parametrize("variables", LOCALES, ids=lambda variables: " ".join(variables.values()))
def test_any_text_is_printed(stages, variables):
    place = stages.trial("report")

    def output(*arguments: str) -> str:
        command = [sys.executable, "-m", "recipe.corpus", "--config", "run.toml", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(command, cwd=place, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii")

    assert "\\u4f60\\u597d" in output("--show", "1"), "escapes of the Chinese greeting"
    assert json.loads(output("--json"))["stage"] == "corpus"


def plain_ascii() -> None:
    """What a process has whose LC_ALL is C, without Python's UTF-8 mode: for messages, and for files that are opened
    without an encoding."""
    locale.setlocale(locale.LC_ALL, "C")
    os.environ |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")
    assert locale.getencoding() != "UTF-8"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_the_same_files_in_any_locale(stages, stage):
    place = stages.trial(stage)
    done = stages.run(stage, place, more=plain_ascii)
    assert (done.status, done.problem()) == (0, ""), done.messages
    assert stages.difference(stage, place) == ""

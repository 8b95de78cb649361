"""Terminals and pipes that are not UTF-8: a result with any text is printed, and JSON stays JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCALES = [
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: " ".join(locale.values()))
def test_any_text_is_printed(stages, locale):
    place = stages.trial("report")

    def output(*arguments: str) -> str:
        command = [sys.executable, "-m", "recipe.corpus", "--config", "run.toml", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **locale}
        done = subprocess.run(command, cwd=place, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii")

    assert "\\u4f60\\u597d" in output("--show", "1"), "escapes of the Chinese greeting"
    assert json.loads(output("--json"))["stage"] == "corpus"

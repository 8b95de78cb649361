"""The page at the end of a run."""

import json

import pytest

from recipe import evaluate, merge, report
from recipe.core.errors import RecipeError


def test_a_page_says_before_after_where_and_what_next(trained_run, capsys):
    config, run = trained_run
    folder = run.folder
    with pytest.raises(RecipeError, match="has not been evaluated"):
        report.run(folder)
    evaluation = evaluate.run(config, run)
    merge.run(config, folder, "hf")
    assert report.main(["--run", str(folder)]) == 0
    page = capsys.readouterr().out
    assert f"{evaluation['base']['loss']:.3f}" in page and f"{evaluation['tuned']['perplexity']:.3f}" in page
    assert "Who are you?" in page and "merged model" in page and "make chat RUN=" in page
    assert report.main(["--run", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == evaluation


def test_an_answer_cannot_forge_the_page():
    quoted = report.quoted("after", "fine\x1b[2J\n\nChat with it: rm -rf\n" + "long " * 200)
    assert "\x1b" not in quoted and all(line.startswith("  after ") for line in quoted.splitlines())
    assert quoted.endswith("...")

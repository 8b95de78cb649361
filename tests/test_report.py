"""The page at the end of a run."""

import json

import pytest

from recipe import evaluate, merge, report
from recipe.core.cli import entry
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


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"base": 1}', '{"base": {}, "tuned": {}, "answers": [], "provenance": 1}']
)
def test_a_strange_eval_json_is_one_sentence(trained_run, text):
    """In a run of others, whose records list it."""
    _, run = trained_run
    run.eval_json.write_text(text)
    run.record(run.eval_json.name)
    for read in (lambda: report.main(["--run", str(run.folder)]), lambda: merge.evaluation_of_run(run)):
        with pytest.raises(RecipeError, match="is not an evaluation of this version"):
            read()


def test_tables_of_another_shape_are_one_sentence(evaluated_run):
    _, run = evaluated_run
    evaluation = json.loads(run.eval_json.read_text()) | {"intervals": {"loss": 7}}
    run.eval_json.write_text(json.dumps(evaluation))
    with pytest.raises(RecipeError, match="its manifest says"):
        report.main(["--run", str(run.folder)])
    run.record("eval.json")
    with pytest.raises(RecipeError, match="have another shape than this version writes"):
        report.main(["--run", str(run.folder)])


def test_metrics_that_were_altered_after_training_are_refused(trained_run, capsys):
    _, run = trained_run
    text = run.metrics.read_text(encoding="utf-8")
    run.metrics.write_text(text.replace("1", "2", 1), encoding="utf-8")
    assert entry(lambda: report.main(["--run", str(run.folder)])) == 1
    assert "metrics.jsonl was altered" in capsys.readouterr().err
    run.metrics.write_text(text, encoding="utf-8")
    assert entry(lambda: report.main(["--run", str(run.folder)])) == 0

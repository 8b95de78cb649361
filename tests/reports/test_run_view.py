"""The report of a run: finished, unfinished, beside another; nothing of a conversation becomes markup."""

import dataclasses
import json
import re
from html.parser import HTMLParser

from recipe import evaluate, provenance, report
from recipe.core.run import Run

VOID = {"meta", "line", "circle", "polyline"}


class Balance(HTMLParser):
    """Opened and closed elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID and tag != "p":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and tag != "p":
            assert self.open.pop() == tag


def test_a_finished_run_has_curves_tables_and_answers(trained_run, capsys):
    config, run = trained_run
    assert report.main(["--run", str(run.folder)]) == 0
    assert "not evaluated yet" in capsys.readouterr().out
    evaluate.run(config, run)
    assert report.main(["--run", str(run.folder)]) == 0
    text = (run.folder / "report.html").read_text()
    parsed = Balance()
    parsed.feed(text)
    assert not parsed.open and {"svg", "table", "details"} <= parsed.tags and "script" not in parsed.tags
    assert "http" not in re.sub(r"http-equiv", "", text)
    for words in ("Finished after", "95 % intervals", "unrelated text", "By source".lower(), "Who are you?"):
        assert words in text
    run.record("config.toml")  # the fixture wrote its paths anew
    assert provenance.main(["verify", str(run.folder)]) == 0
    result = json.loads(run.eval_json.read_text())
    row = next(
        line for line in (run.folder / "report.md").read_text().splitlines() if line.startswith("| validation l")
    )
    wanted = (result["base"]["loss"], result["tuned"]["loss"], result["tuned"]["loss"] - result["base"]["loss"])
    for cell, value in zip(row.split("|")[2:5], wanted, strict=True):
        assert cell.strip().startswith(f"{value:.3f} [")


def test_an_unfinished_run_shows_what_there_is(trained_run):
    _, run = trained_run
    run.manifest_file.unlink()
    with open(run.metrics, "a") as file:
        file.write('{"loss": 1.')  # the process is writing this line
    assert report.main(["--run", str(run.folder)]) == 0
    assert "Not finished" in (run.folder / "report.html").read_text()


def test_two_runs_are_compared_in_words(trained_run, capsys):
    config, run = trained_run
    evaluate.run(config, run)
    other = Run(run.folder.with_name("other"))
    changed = dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=99))
    other.folder.mkdir()
    other.begin(changed)
    for name in ("eval.json", "metrics.jsonl"):
        (other.folder / name).write_bytes((run.folder / name).read_bytes())
    assert report.main(["--run", str(run.folder), "--against", str(other.folder)]) == 0
    text = (run.folder / "report.html").read_text()
    assert "lora.alpha: 8 != 99" in text and "may be chance" in text and "other: training" in text


def test_hostile_answers_stay_text(trained_run):
    config, run = trained_run
    evaluate.run(config, run)
    result = json.loads(run.eval_json.read_text())
    result["answers"] = [{"question": "<script>x</script>|", "base": "</div><img onerror=x>\x1b[2J", "tuned": "\u202e"}]
    run.eval_json.write_text(json.dumps(result))
    run.record("eval.json")
    assert report.main(["--run", str(run.folder)]) == 0
    for name in ("report.html", "report.md"):
        text = (run.folder / name).read_text()
        assert "<script>" not in text and "\x1b" not in text and "\u202e" not in text
    assert "<img" not in (run.folder / "report.html").read_text()

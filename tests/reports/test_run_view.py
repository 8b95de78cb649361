"""The report of a run: finished, unfinished, beside another; nothing of a conversation becomes markup."""

import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from recipe import evaluate, provenance, report
from recipe.core.cli import entry
from recipe.core.run import Run
from recipe.reports.runs import list_runs
from tests.serving import programs

VOID = {"meta", "line", "circle", "polyline"}


def open_in_browser(file, folder):
    """The page shows all it has at the width of a phone and of a desk, asks for nothing, and no script runs."""
    if programs.find() is None:
        return  # the page's own policy and its escaping are checked without one

    async def look():
        async with programs.open_tab(file.as_uri(), folder / "profile", "section") as tab:
            for width, scheme in ((360, "dark"), (1100, "light")):
                await tab.look(width, 800, scheme)
                assert await tab.js("document.documentElement.scrollWidth <= innerWidth"), width
            assert await tab.js("getComputedStyle(document.querySelector('section')).borderRadius") != "0px"
            assert await tab.js("document.scripts.length + document.images.length") == 0
            assert not tab.logged and tab.requests == [file.as_uri()]

    asyncio.run(asyncio.wait_for(look(), 100))


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
    for words in (
        "Finished after",
        "95 % intervals",
        "unrelated text",
        "loss by source",
        "Who are you?",
        "plan for a P100",
        "Sources of the corpus",
        "Replay",
    ):
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
    text = (run.folder / "report.html").read_text()
    assert "Not finished: stopped after" in text and "(100%)" in text and "Training loss" in text
    held = "import sys, time; from recipe.core.files import lock_file; from pathlib import Path\n"
    held += "with lock_file(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held, run.lock], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert report.main(["--run", str(run.folder)]) == 0
        process.kill()
    assert "Training now" in (run.folder / "report.html").read_text()


def test_two_runs_are_compared_in_words(evaluated_run, capsys):
    config, run = evaluated_run
    other = Run(run.folder.with_name("other"))
    changed = dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=99))
    other.folder.mkdir()
    other.begin(changed)
    for name in ("eval.json", "metrics.jsonl"):
        (other.folder / name).write_bytes((run.folder / name).read_bytes())
    other.record("eval.json")
    assert report.main(["--run", str(run.folder), "--against", str(other.folder)]) == 0
    text = (run.folder / "report.html").read_text()
    assert "lora.alpha: 8 != 99" in text and "other: training" in text and "on different conversations" in text
    assert "may be chance" in capsys.readouterr().out and "lora.alpha" in (run.folder / "report.md").read_text()
    rows = [json.loads(line) for line in run.eval_losses.read_text().splitlines()]
    for change, words in ((0.0, "within its interval"), (0.5, "the first run is better"), (-0.5, "the second run is")):
        lines = [json.dumps(row | {"tuned": row["tuned"] + change * row["tokens"]}) + "\n" for row in rows]
        other.eval_losses.write_text("".join(lines))
        assert report.main(["--run", str(run.folder), "--against", str(other.folder)]) == 0
        assert words in " ".join(capsys.readouterr().out.split())


def test_hostile_answers_stay_text(evaluated_run, tmp_path):
    _, run = evaluated_run
    result = json.loads(run.eval_json.read_text())
    result["answers"] = [{"question": "<script>x</script>|", "base": "</div><img onerror=x>\x1b[2J", "tuned": "\u202e"}]
    run.eval_json.write_text(json.dumps(result))
    run.record("eval.json")
    assert report.main(["--run", str(run.folder)]) == 0
    open_in_browser(run.folder / "report.html", tmp_path)
    for name in ("report.html", "report.md"):
        text = (run.folder / name).read_text()
        assert "<script>" not in text and "\x1b" not in text and "\u202e" not in text
    assert "<img" not in (run.folder / "report.html").read_text()


def test_all_runs_are_one_table(evaluated_run, capsys):
    config, run = evaluated_run
    evaluation = json.loads(run.eval_json.read_text())
    other = Run(run.folder.with_name("zz-other"))
    other.folder.mkdir()
    other.begin(dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=99)))
    strange = Run(run.folder.parent.with_name("strange") / "1")
    strange.folder.mkdir(parents=True)
    strange.config_file.write_text("[train]\nunknown_key = 1\n")
    assert report.main(["--all", "--set", f"runs={config.runs}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    finished = next(line for line in lines if run.folder.name in line)
    assert "evaluated" in finished and "lora.alpha=8" in finished and f"{evaluation['tuned']['loss']:.3f}" in finished
    stopped = next(line for line in lines if "zz-other" in line)
    assert "stopped" in stopped and "lora.alpha=99" in stopped and "lora.rank" not in stopped
    assert any("strange/1" in line and "config unreadable" in line for line in lines)
    assert report.main(["--all", "--json", "--set", f"runs={config.runs}"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert rows[f"tiny/{run.folder.name}"]["before"] == evaluation["base"]["loss"]
    os.utime(run.config_file, (1_000, 1_000))
    os.utime(run.metrics, (1_000 + 5_400, 1_000 + 5_400))
    assert next(row.hours for row in list_runs(Path(config.runs)) if row.name.endswith(run.folder.name)) == 1.5
    assert entry(lambda: report.main(["--all", "--set", f"runs={config.runs}/none"])) == 1
    assert "holds no runs" in capsys.readouterr().err


def test_a_run_that_forgot_or_learned_nothing_is_marked(evaluated_run, capsys):
    _, run = evaluated_run
    result = json.loads(run.eval_json.read_text())
    result["forgetting"] |= {"difference": [0.5, 0.4, 0.6], "worse": True}
    result["intervals"]["loss"]["difference"] = [-0.1, -0.3, 0.1]
    run.eval_json.write_text(json.dumps(result))
    run.record("eval.json")
    assert report.main(["--run", str(run.folder)]) == 0
    for name in ("report.html", "report.md"):
        text = (run.folder / name).read_text()
        assert "the model forgot" in text and "nothing shows that the model learned" in text
    assert evaluate.main(["--run", str(run.folder)]) == 0
    assert "warning: the model forgot" in capsys.readouterr().err

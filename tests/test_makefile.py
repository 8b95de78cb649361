"""The Makefile hands values over as text: neither make nor a shell evaluates what a caller puts into a variable."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = ROOT / "Makefile"
# Stands in for Python and for docker/image.sh: records its arguments and the values in its environment.
RECORDER = """#!/bin/bash
printf '%s\\0' "$@" >"$RECORD"
echo "${0##*/}" >>"$RECORD.calls"
"""
HOSTILE = [
    "two  words.toml",
    "colon:x.toml",
    'it\'s "quoted".toml',
    "$(shell touch canary)",
    "$(touch canary)",
    "`touch canary`",
    "x; touch canary #",
    "x' ; touch canary; '",
    'x" ; touch canary; "',
    "$$HOME \\ & | > canary",
    "--help",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of the Makefile with recorders for every program that it starts."""
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "docker").mkdir()
    for recorder in (tmp_path / "python", tmp_path / "docker" / "image.sh"):
        recorder.write_text(RECORDER)
        recorder.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """The arguments of the last program that `make ARGUMENT...` started, and that nothing else was started."""
    given = {"PATH": os.environ["PATH"], "RECIPE_PYTHON": str(folder / "python"), "RECORD": str(folder / "record")}
    done = subprocess.run(["make", *arguments], cwd=folder, env=given | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "canary").exists()
    return (folder / "record").read_text().split("\0")[:-1]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    ("target", "variable", "expected"),
    [
        ("doctor", "CONFIG", ["-m", "recipe.doctor", "--config={}"]),
        ("plan", "CONFIG", ["-m", "recipe.plan", "--config={}"]),
        ("convert", "CONFIG", ["-m", "recipe.convert", "--config={}"]),
        ("corpus", "CONFIG", ["-m", "recipe.corpus", "--config={}"]),
        ("train", "CONFIG", ["-m", "recipe.train", "--config={}"]),
        ("evaluate", "RUN", ["-m", "recipe.evaluate", "--run={}"]),
        ("chat", "CONFIG", ["-m", "recipe.chat", "--config={}"]),
        ("report", "RUN", ["-m", "recipe.report", "--run={}"]),
        ("report", "AGAINST", ["-m", "recipe.report", "--config=recipe/configs/vicuna-7b-p100.toml", "--against={}"]),
        ("runs-diff", "A", ["-m", "recipe.provenance", "diff", "--", "{}", ""]),
        ("runs-diff", "B", ["-m", "recipe.provenance", "diff", "--", "", "{}"]),
        ("replay", "RUN", ["-m", "recipe.provenance", "replay", "--run={}"]),
        ("bundle", "RUN", ["-m", "recipe.provenance", "bundle", "--run={}"]),
        ("merge", "TO", ["-m", "recipe.merge", "--config=recipe/configs/vicuna-7b-p100.toml", "--to={}"]),
        ("fetch", "NAME", ["-m", "recipe.fetch", "--", "{}"]),
        ("weights", "NAME", ["-m", "recipe.fetch", "--weights", "--", "{}"]),
        ("data", "CONFIG", ["-m", "recipe.fetch", "--data", "--config={}"]),
        ("run-train", "CONFIG", ["run", "train", "CONFIG={}"]),
        ("run-merge", "TO", ["run", "merge", "TO={}"]),
    ],
)
def test_a_value_reaches_the_program_unchanged(folder, value, target, variable, expected):
    wanted = [argument.replace("{}", value) for argument in expected]
    assert make(folder, target, f"{variable}={value}") == wanted
    assert make(folder, target, **{variable: value}) == wanted
    assert len((folder / "record.calls").read_text().splitlines()) == 2, "make started one program each time"


@pytest.mark.parametrize("target", ["run-x; touch canary", "run-`touch canary`", "run-$(shell touch canary)"])
def test_a_target_name_is_not_evaluated(folder, target):
    assert make(folder, target) == ["run", target.removeprefix("run-")]


def test_a_container_gets_only_what_the_caller_set(folder):
    assert make(folder, "run-evaluate") == ["run", "evaluate"]
    assert make(folder, "run-evaluate", "RUN=runs/x/latest") == ["run", "evaluate", "RUN=runs/x/latest"]
    assert make(folder, "run-merge", TO="gguf") == ["run", "merge", "TO=gguf"]


def test_a_stage_uses_the_run_or_the_latest_run_of_the_config(folder):
    assert make(folder, "chat", "CONFIG=my.toml")[-1] == "--config=my.toml"
    assert make(folder, "chat", "CONFIG=my.toml", "RUN=runs/x/1")[-1] == "--run=runs/x/1"


@pytest.mark.parametrize("value", ["2", *HOSTILE])
def test_several_gpus_are_started_by_torchrun(folder, value):
    *torchrun, port, module, train, config = make(folder, "train", f"GPUS={value}", "CONFIG=my.toml")
    assert torchrun == ["-m", "torch.distributed.run", f"--nproc_per_node={value}"]
    assert re.fullmatch(r"--master_port=2\d{4}", port)
    assert [module, train, config] == ["-m", "recipe.train", "--config=my.toml"]


def test_help_names_every_target_in_one_line(folder):
    done = subprocess.run(["make"], cwd=folder, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    listed = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    rules = re.findall(r"^([a-z%-]+):(?!=)(?! export)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(rules)
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


def test_the_image_holds_the_shipped_configs_and_no_others():
    listed = subprocess.run(["git", "ls-files", "recipe/configs"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: which configs are shipped is not known here")
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = lines[lines.index("recipe/configs/*") + 1 :]
    assert allowed == [f"!{name}" for name in listed.stdout.splitlines()]

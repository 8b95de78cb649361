"""The documentation is true: links resolve, and every file, command, target, setting and flag in it exists."""

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from recipe.core import config as configs
from recipe.core.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "ARTIFACT.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docker/jobs/README.md",
    "tests/bench/README.md",
)


def section(title: str) -> str:
    """The text under a second-level heading of the README."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found, f"no section {title}"
    return found[1]


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced code blocks of one language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [body for name, body in fences if name == language]


def anchor(heading: str) -> str:
    """A heading's anchor as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def first_cells(table: str) -> list[str]:
    """The first column of a Markdown table, without its head."""
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [line.split("|")[1].strip() for line in rows[2:]]


def settings(cls: type, prefix: str = "") -> set[str]:
    """Dotted names of all settings and sections, those of repeated tables included."""
    out = set()
    for item, hint in ((item, typing.get_type_hints(cls)[item.name]) for item in dataclasses.fields(cls)):
        name = prefix + item.name
        out.add(name)
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                out |= settings(typing.cast(type, inner), f"{name}.")
    return out


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        target, _, fragment = link.partition("#")
        if target.startswith("https://"):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert fragment in {anchor(heading) for heading in headings}, link


def test_code_map_names_all_commands_and_packages_and_no_others():
    listed = [cell.strip("`") for cell in first_cells(section("Map of the code"))]
    for path in listed:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    code = ROOT / "recipe"
    commands = {f"recipe/{path.name}" for path in code.glob("*.py") if path.name != "__init__.py"}
    packages = {f"recipe/{path.parent.relative_to(code)}/" for path in code.glob("*/__init__.py")}
    assert commands | packages <= set(listed)


@pytest.mark.parametrize("page", PAGES)
def test_targets_and_commands_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)])
    targets = {target.removeprefix("run-") for target in re.findall(r"\bmake ([a-z][a-z-]*)\b(?![-A-Z])", code)}
    assert targets <= make_targets()
    for command in re.findall(r"\brecipe\.([a-z]+)\b", re.sub(r"recipe\.<command>", "", code)):
        assert (ROOT / "recipe" / f"{command}.py").is_file(), command


def test_settings_and_their_values_exist():
    known = settings(Config)
    sections = {name for name in known if any(other.startswith(f"{name}.") for other in known)}
    named = re.findall(rf"`(?:--set )?((?:{'|'.join(sorted(sections))})\.[a-z_.]+)(?<!\.jsonl)[`=]", README)
    assert named
    for name in named:
        assert name in known, name


def test_changelog_names_old_settings_that_are_gone_and_new_ones_that_exist():
    known = settings(Config)
    rows = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) >= 6
    for row in rows:
        old, new = (re.findall(r"`([a-z_.\[\]]+)`", cell) for cell in row.split("|")[1:3])
        assert old[0] not in known, old
        with pytest.raises(configs.UsageError):
            configs.load(None, {old[0]: 1})
        for name in new:
            name = name.strip("[]")
            assert name in known or f"corpus.source.{name}" in known, name


def test_the_example_config_loads(tmp_path):
    (example,) = blocks(section("Your own data and settings"), "toml")
    (tmp_path / "my.toml").write_text(example)
    config = configs.load(tmp_path / "my.toml")
    assert config.name == tomllib.loads(example)["name"]
    assert len(config.corpus.source) == 2 and config.corpus.source[1].fields["question"] == "query"


def test_container_flags_are_those_of_the_script_and_all_explained():
    text, script = section("Container"), (ROOT / "docker" / "image.sh").read_text(encoding="utf-8")
    examples = blocks(text)
    assert len(examples) == 2
    explained = " ".join(first_cells(text))
    for example in examples:
        flags = re.findall(r"(?<=\s)--[a-z-]+", example)
        assert len(flags) > 10
        for flag in flags:
            assert flag in script and flag in explained, flag
        for target in re.findall(r"vicuna-p100 ([a-z]+)", example):
            assert target in make_targets()


def test_developing_table_has_real_commands():
    for cell in first_cells(section("Developing")):
        command = cell.strip("`").split()
        if command[0] == "make":
            assert command[1] in make_targets()
        elif "nox" in command:
            assert re.search(
                rf"@nox\.session(\(.*\))?\ndef {command[-1]}\(", (ROOT / "noxfile.py").read_text(encoding="utf-8")
            )
        else:
            assert (ROOT / command[0]).stat().st_mode & 0o100, command


def test_plan_output_is_what_plan_prints():
    text = section("What make plan prints")
    command = re.search(r"`\.venv/bin/python (-m recipe\.plan [^`]+)`", text)
    (shown,) = blocks(text)
    done = subprocess.run([sys.executable, *command[1].split()], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.strip() == done.stdout.strip(), f"put the output of {command[0]} into README.md"


def test_results_are_those_of_the_benchmark():
    rows = (ROOT / "tests" / "bench" / "results" / "bench.md").read_text(encoding="utf-8")
    table = [line.split("|")[1:5] for line in section("Results").splitlines() if line.startswith("| training")]
    lengths = re.split(r"^\| at length 512 \||^\| at length 2048 \||^\| at length 512, without", rows, flags=re.M)[1:3]
    for (_, *shown), measured in zip(table, lengths, strict=True):
        for number in shown:
            assert re.search(rf"\| {number.strip()} \(", measured), number
    ours, usual = re.search(r"conversations prepared, conversations/s \| ([\d,]+) \| ([\d,]+) \|", README).groups()
    assert f"| {ours} a second" in rows and f"usual pipeline's {usual} " in rows
    ratios = {f"{float(ratio):.1f}" for ratio in re.findall(r"\| (\d\.\d+) [|(]", rows)}
    claims = re.findall(r"(\d\.\d) times", README.split("## Demo")[0])
    assert claims and set(claims) <= ratios


def test_merged_model_loads_in_transformers_as_shown(trained_run, tmp_path):
    from recipe import merge

    _, run = trained_run
    assert merge.main(["--run", str(run.folder)]) == 0
    (example,) = blocks(section("Use the result in transformers"), "python")
    assert len(ast.parse(example).body) == 3
    code = example.replace("runs/demo/latest/merged", str(run.merged().resolve()))
    assert code != example
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    turns = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and turns[1]["content"]

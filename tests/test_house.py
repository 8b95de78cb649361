"""The house keeps its plan: who may import whom, what a start may cost, what the text may not name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipe"
ROOMS = {"checkpoints", "conversations", "pascal"}
STAGES = {"fetch", "convert", "corpus", "train", "evaluate", "merge", "chat", "doctor", "plan", "report", "pins"}
MODULES = sorted(RECIPE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every recipe module that `path` imports, at its top or inside a function, as a dotted name."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in out if name.split(".")[0] == "recipe"}


def top_imports(path: Path) -> set[str]:
    """First names of the packages imported when the module is."""
    out = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            out |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module.split(".")[0])
    return out


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_arrows(path):
    parts = path.relative_to(RECIPE).with_suffix("").parts
    used = {name.split(".")[1] for name in imports(path) if "." in name}
    if parts[0] == "pascal":
        assert used <= {"pascal"}, "what is particular to the card needs torch alone"
    elif parts[0] in ROOMS:
        assert used <= {parts[0], "errors"}, "the three rooms do not know each other, nor the stages"
    elif parts[0] in STAGES:
        assert not used & (STAGES - {parts[0]}), "stages meet through files"
    else:
        assert not used & STAGES, "what stages share knows no stage"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_text_rooms_and_config_import_no_torch_at_the_top(path):
    parts = path.relative_to(RECIPE).parts
    if parts[0] in {"conversations", "config.py", "console.py", "provenance.py", "errors.py"} or path.stem in STAGES:
        assert not top_imports(path) & {"torch", "transformers", "peft", "datasets", "accelerate"}


@pytest.mark.parametrize("stage", sorted(path.stem for path in RECIPE.glob("*.py") if path.stem in STAGES))
def test_help_is_instant_and_has_an_example(stage):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{stage}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('recipe.{stage}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"example:\s+python -m recipe\.{stage}", done.stdout)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_nothing_runs_foreign_code(path):
    text = path.read_text(encoding="utf-8")
    for forbidden in (r"\btorch\.load\(", r"trust_remote_code\s*=\s*True", r"\bpickle\.loads?\(", r"(?<![.\w])eval\("):
        assert not re.search(forbidden, text), forbidden


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known here")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_the_project_names_no_machine_and_no_registry():
    words = (r"py" r"pi\.org", r"python" r"hosted\.org", r"(?<![\w.])/(ro" r"ot|ho" r"me)/\w")
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".in", ".lock", ".yml", ""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            for word in words:
                assert not re.search(word, text), f"{path.relative_to(ROOT)} holds {word}"


def test_locks_hold_hashes_and_nothing_else_to_trust():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / "docker" / name).read_text()
        blocks = re.split(r"\n(?=[a-z0-9])", text.strip())
        assert len(blocks) > 15
        for block in blocks:
            assert re.match(r"[a-z0-9._-]+==[^ ]+ \\\n", block), block.splitlines()[0]
            assert "--hash=sha256:" in block and "://" not in block

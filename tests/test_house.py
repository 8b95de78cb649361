"""The house keeps its plan: who may import whom, what a start may cost, what the text may not name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipe"
COMMANDS = {path.stem for path in RECIPE.glob("*.py")} - {"__init__"}
# package -> the packages that it may import. Commands may import any package and no command.
ALLOWED = {
    "core": set(),
    "pascal": set(),
    "conversations": {"core"},
    "evaluation": {"core", "conversations", "model"},
    "checkpoints": {"core"},
    "planning": {"core", "pascal"},
    "reports": {"core", "conversations"},
    "environment": {"core", "planning", "pascal"},
    "model": {"core", "conversations", "checkpoints", "pascal"},
    "training": {"core", "conversations", "model", "pascal"},
}
TORCH_FREE = {"core", "conversations", "planning", "reports"}
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate"}
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


def room(path: Path) -> str:
    """The package that a module belongs to, or the command that it is."""
    return path.relative_to(RECIPE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_arrows_go_down(path):
    used = {name.split(".")[1] for name in imports(path) if "." in name} - {room(path)}
    if room(path) in COMMANDS:
        assert not used & COMMANDS, "commands meet through files"
    elif room(path) != "__init__":
        assert used <= ALLOWED[room(path)]


def test_the_house_is_as_drawn():
    assert {path.name for path in RECIPE.iterdir() if (path / "__init__.py").is_file()} == ALLOWED.keys()
    assert len(COMMANDS) <= 15, "at the top of recipe/ lies only what can be typed"
    assert sum(map(len, ALLOWED.values())) <= 30
    for path in COMMANDS:
        assert 'if __name__ == "__main__":' in (RECIPE / f"{path}.py").read_text(encoding="utf-8")


def test_no_module_imports_itself_in_a_circle():
    names = {path: ".".join(("recipe", *path.relative_to(RECIPE).with_suffix("").parts)) for path in MODULES}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    arrows = {name: imports(path) & set(names.values()) - {"recipe", name} for path, name in names.items()}
    while leaves := [name for name, used in arrows.items() if not used & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_what_must_start_fast_imports_no_torch_at_its_top(path):
    if room(path) in TORCH_FREE | COMMANDS:
        assert not top_imports(path) & HEAVY


@pytest.mark.parametrize("stage", sorted(COMMANDS))
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

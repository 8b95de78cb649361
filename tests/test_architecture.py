"""The architecture: which package may import which, what must start fast, what no file may name."""

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
    "evaluation": {"core", "conversations", "model", "training"},  # it packs samples as training does
    "checkpoints": {"core"},
    "downloads": {"core"},
    "planning": {"core", "pascal"},
    "reports": {"core", "conversations"},
    "environment": {"core", "planning", "pascal"},
    "model": {"core", "conversations", "checkpoints", "pascal"},
    "training": {"core", "conversations", "model", "pascal"},
    "proof": {"core"},
    "serving": {"core", "conversations", "model"},
}
TORCH_FREE = {"core", "conversations", "downloads", "planning", "reports"}
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


def package(path: Path) -> str:
    """The package of a module, or the name of the command that it is."""
    return path.relative_to(RECIPE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_every_import_is_an_allowed_arrow(path):
    used = {name.split(".")[1] for name in imports(path) if "." in name} - {package(path)}
    if package(path) in COMMANDS:
        assert not used & COMMANDS, "a command imports no other command: they meet through files"
    elif package(path) != "__init__":
        assert used <= ALLOWED[package(path)]


def test_packages_arrows_and_commands_are_as_designed():
    assert {path.name for path in RECIPE.iterdir() if (path / "__init__.py").is_file()} == ALLOWED.keys()
    assert len(list(RECIPE.glob("*.py"))) <= 16, "the top level of recipe/ holds only what can be typed"
    assert sum(map(len, ALLOWED.values())) <= 30
    for command in COMMANDS:
        assert 'if __name__ == "__main__":' in (RECIPE / f"{command}.py").read_text(encoding="utf-8")


def test_there_is_no_import_circle():
    names = {path: ".".join(("recipe", *path.relative_to(RECIPE).with_suffix("").parts)) for path in MODULES}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    arrows = {name: imports(path) & set(names.values()) - {"recipe", name} for path, name in names.items()}
    while leaves := [name for name, used in arrows.items() if not used & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(RECIPE).as_posix())
def test_what_starts_fast_imports_no_torch(path):
    if package(path) in TORCH_FREE | COMMANDS:
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


def test_no_file_names_a_machine_or_registry():
    words = (r"py" r"pi\.org", r"python" r"hosted\.org", r"(?<![\w.])/(ro" r"ot|ho" r"me)/\w")
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".in", ".lock", ".yml", ""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            for word in words:
                assert not re.search(word, text), f"{path.relative_to(ROOT)} holds {word}"


def test_every_locked_package_has_hashes():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / "docker" / name).read_text()
        blocks = re.split(r"\n(?=[a-z0-9])", text.strip())
        assert len(blocks) > 15
        for block in blocks:
            assert re.match(r"[a-z0-9._-]+==[^ ]+ \\\n", block), block.splitlines()[0]
            assert "--hash=sha256:" in block and "://" not in block

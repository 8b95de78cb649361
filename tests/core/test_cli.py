"""How every command behaves: exit codes, one sentence, untrusted text, tables."""

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import config as configs
from recipe.core import schema
from recipe.core.cli import FIELDS, build_parser, entry
from recipe.core.errors import RecipeError, UnfitError, UsageError
from recipe.core.text import markdown_table, printable, progress, table

ROOT = Path(__file__).parents[2]


def raiser(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecipeError("found this"), 1, "error: found this\n"),
        (UsageError("found that"), 2, "error: found that\n"),
        (UnfitError("found nothing"), 3, "error: found nothing\n"),
        (OSError(errno.ENOSPC, "", "x"), 1, "error: no space is left on the disk: x; free some or choose another path"),
        (OSError(errno.EACCES, "", "x"), 1, "error: permission denied: x; fix permissions or choose another path\n"),
        (OSError(errno.EPERM, "", "x"), 1, "error: not permitted by the file system: x; choose a path on another"),
        (OSError(errno.ENAMETOOLONG, "", "x" * 999), 1, f"error: file name too long: {'x' * 300}...; check the path"),
        (OSError(errno.EISDIR, "", "x\x1b[2J"), 1, "error: is a directory: x\\x1b[2J; check the path and the disk"),
        (OSError("odd"), 1, "error: odd; check the path"),
        (MemoryError(), 1, "error: out of memory; stop other programs"),
        (RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0"), 1, "error: no space is left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 1, "error: out of memory; "),
        (Exception("No space left on device (os error 28)"), 1, "error: no space is left on the disk; free some"),
        (KeyboardInterrupt(), 130, "\ninterrupted: no partial output was left"),
    ],
)
def test_every_failure_is_one_sentence_and_an_exit_code(error, code, said, capsys):
    assert entry(raiser(error)) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_failed_write_inside_a_library_is_one_sentence(tmp_path):
    """The real safetensors and torch at a limit of the file size: neither raises an OSError."""
    code = (
        "import resource, signal, sys, torch; from safetensors.torch import save_file\n"
        "from recipe.core.cli import entry\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "entry(lambda: save_file({'x': torch.zeros(1 << 16)}, sys.argv[1]))\n"
        "entry(lambda: torch.save(torch.zeros(1 << 16), sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    first, second = done.stderr.splitlines()
    assert first.startswith("error: Error while serializing: I/O error: File too large")
    assert second.startswith("error: no space is left on the disk")


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("q_prj"), AssertionError()])
def test_a_defect_of_the_recipe_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        entry(raiser(error))


def test_an_error_during_a_bar_starts_on_its_own_line(capsys):
    def main() -> int:
        for _ in progress(range(3), desc="work"):
            raise RecipeError("found this")
        return 0

    assert entry(main) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: found this" and any("work" in line for line in lines[:-1])


def test_messages_and_bars_survive_a_closed_pipe():
    code = (
        "import os, sys; from recipe.core.text import progress, say\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 2)\n"
        "say('lost')\n"
        "for _ in progress(range(3)): say('lost')\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "done\n"


def test_output_into_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        [f"{sys.executable} -m recipe.plan --help | true"], shell=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "Traceback" not in done.stderr
    code = (
        "import os, sys; from recipe.core.cli import entry\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "def main(): print('x' * 100_000, flush=True); return 0\n"
        "sys.exit(entry(main))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "")


def test_untrusted_text_cannot_steer_a_terminal():
    assert printable("a\tb\n中文 é 👩‍👩‍👧", keep="\n\t") == "a\tb\n中文 é 👩‍👩‍👧"
    assert printable("\x1b[31mred\x07\r\u202eevil\x9b") == r"\x1b[31mred\x07\r\u202eevil\x9b"


def test_markdown_cells_hold_no_html_and_no_new_cell():
    text = markdown_table([["source", "n"], ["<img src=x onerror=alert(1)>|a\nb", "1"]])
    assert text.splitlines() == [
        "| source | n |",
        "| --- | --- |",
        r"| &lt;img src=x onerror=alert(1)&gt;\|a\nb | 1 |",
    ]


def test_table_aligns_its_columns():
    assert table([["", "a"], ["long name", "1"]]).splitlines() == [
        "           a",
        "---------  -",
        "long name  1",
    ]
    assert table([["n", "MiB"], ["a", "1"]], right=(1,)).splitlines()[2] == "a    1"


def test_help_shows_only_the_fields_that_a_command_reads(capsys):
    shown = {}
    for stage, fields in FIELDS.items():
        lines = build_parser(stage, "", "x").format_help().partition("config fields")[2].splitlines()[1:]
        shown[stage] = {line.split(":")[0].strip() for line in lines}
        names = {name for name, _ in schema.list_fields(configs.Config)}
        assert shown[stage] <= names
        assert all(any(f"{name}.".startswith(f"{field}.") for name in names) for field in fields), fields
    assert shown["convert"] == {"base.source", "base.path", "base.dtype"}
    assert "lora.rank" in shown["train"] and "lora.rank" not in shown["corpus"]


@pytest.mark.parametrize("stage", sorted(FIELDS))
def test_help_lists_every_field_that_a_command_names(stage):
    """`config.section.key` in the command's own file; what its packages read is for its author to list."""
    text = (ROOT / "recipe" / f"{stage}.py").read_text(encoding="utf-8")
    names = {name for name, _ in schema.list_fields(configs.Config)}
    read = {f"{section}.{key}" for section, key in re.findall(r"\bconfig\.(\w+)\.(\w+)", text)} & names
    assert {name for name in read if not any(f"{name}.".startswith(f"{field}.") for field in FIELDS[stage])} == set()


def test_make_alone_lists_the_targets():
    out = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in ("demo", "test", "train", "convert", "corpus", "evaluate", "merge", "chat", "lock"):
        assert f"\n  {target} " in out


@pytest.mark.parametrize(("version", "found"), [("Python 3.12.1", "Python 3.12.1"), (None, "no program")])
def test_another_python_is_one_sentence(tmp_path, version, found):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "docker").mkdir()
    for name in ("requirements.lock", "requirements-dev.lock"):
        (tmp_path / "docker" / name).touch()
    fake = tmp_path / "fakepython"
    if version:
        fake.write_text(f"#!/bin/sh\necho {version}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = {name: value for name, value in os.environ.items() if name != "RECIPE_PYTHON"}
    command = ["make", "-s", "setup", f"PYTHON={fake}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    first = done.stderr.splitlines()[0]
    assert (
        first.startswith(f"error: found {found}")
        and "expected Python 3.11 (torch 2.0.1" in first
        and "make setup PYTHON=" in first
    )


@pytest.mark.parametrize("stage", ["corpus", "train"])
def test_ctrl_c_while_modules_load_is_no_traceback(stage, tmp_path):
    """The first module that a command imports waits for the signal."""
    (tmp_path / "argparse.py").write_text("import sys, time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", f"recipe.{stage}", "--config", "none.toml"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -signal.SIGINT

"""How every command behaves: exit codes, one sentence, untrusted text, tables."""

import errno
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from recipe.core.cli import entry
from recipe.core.errors import RecipeError, UnfitError, UsageError
from recipe.core.text import printable, table

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
        (OSError(errno.ENOSPC, "", "here"), 1, "error: no space is left on the disk at here: free some"),
        (OSError(errno.EACCES, "", "here"), 1, "error: writing is not allowed at here: "),
        (KeyboardInterrupt(), 130, "\ninterrupted: "),
    ],
)
def test_every_failure_is_one_sentence_and_an_exit_code(error, code, said, capsys):
    assert entry(raiser(error)) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_defect_of_ours_is_not_dressed_up(capsys):
    with pytest.raises(ZeroDivisionError):
        entry(raiser(ZeroDivisionError()))


def test_untrusted_text_cannot_steer_a_terminal():
    assert printable("a\tb\n中文 é 👩‍👩‍👧", keep="\n\t") == "a\tb\n中文 é 👩‍👩‍👧"
    assert printable("\x1b[31mred\x07\r\u202eevil\x9b") == r"\x1b[31mred\x07\r\u202eevil\x9b"


def test_table_aligns_its_columns():
    assert table([["", "a"], ["long name", "1"]]).splitlines() == [
        "           a",
        "---------  -",
        "long name  1",
    ]


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
    done = subprocess.run(["make", "-s", "setup", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    first = done.stderr.splitlines()[0]
    assert (
        first.startswith(f"error: found {found}")
        and "expected Python 3.11 (torch 2.0.1" in first
        and "make PYTHON=" in first
    )

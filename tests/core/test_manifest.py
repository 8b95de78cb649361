"""Manifests: done means verified, written whole or not at all, and the same bytes on every machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipe import provenance
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST, atomic_file, atomic_folder, sha256
from recipe.core.manifest import check_intact, completed, hash_inputs, read_manifest, verify, write_manifest
from recipe.core.versions import environment


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    with atomic_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "a.txt").write_text("alpha")
        (partial / "sub" / "b.bin").write_bytes(b"\0" * 10)
        write_manifest(partial, "stage", {"k": 1}, {"raw": "00"}, {"n": 2})
    return folder


def test_an_intact_artefact_is_done_and_verifies(artefact):
    assert verify(artefact) == []
    manifest = completed(artefact, "stage", {"k": 1}, {"raw": "00"})
    assert manifest and manifest["results"] == {"n": 2}
    assert set(manifest["outputs"]) == {"a.txt", "sub/b.bin"}


@pytest.mark.parametrize(
    ("stage", "config", "inputs"),
    [("other", {"k": 1}, {"raw": "00"}), ("stage", {"k": 2}, {"raw": "00"}), ("stage", {"k": 1}, {"raw": "01"})],
)
def test_other_work_is_not_done(artefact, stage, config, inputs):
    assert completed(artefact, stage, config, inputs) is None


def test_a_changed_a_cut_and_a_missing_file_are_each_named(artefact):
    (artefact / "a.txt").write_text("alphA")
    (artefact / "sub" / "b.bin").write_bytes(b"")
    first, second = verify(artefact)
    assert "a.txt was altered" in first and "0 bytes" in second
    (artefact / "a.txt").unlink()
    assert "is missing" in verify(artefact)[0]
    assert completed(artefact, "stage", {"k": 1}, {"raw": "00"}) is None
    with pytest.raises(RecipeError, match=r"is missing; make .* again \(1 more\)"):
        check_intact(artefact)


def test_a_manifest_holds_no_path_host_or_time(artefact, tmp_path):
    text = (artefact / MANIFEST).read_text()
    assert str(tmp_path) not in text and os.uname().nodename not in text
    again = tmp_path / "elsewhere" / "artefact"
    with atomic_folder(again) as partial:
        (partial / "sub").mkdir()
        (partial / "a.txt").write_text("alpha")
        (partial / "sub" / "b.bin").write_bytes(b"\0" * 10)
        write_manifest(partial, "stage", {"k": 1}, {"raw": "00"}, {"n": 2})
    assert (again / MANIFEST).read_bytes() == (artefact / MANIFEST).read_bytes()


def test_a_manifest_that_is_no_manifest(tmp_path):
    for text, said in (("{", "is not a manifest"), ("[]", "not a manifest of this recipe")):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(RecipeError, match=said):
            read_manifest(tmp_path)


def test_a_failed_block_leaves_the_old_folder_and_nothing_else(artefact, tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(artefact) as partial:
        (partial / "half").write_text("half")
        raise ZeroDivisionError
    assert verify(artefact) == []
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_a_failed_block_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(file) as out:
        out.write("new")
        raise ZeroDivisionError
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_killed_process_leaves_the_old_folder_and_the_next_one_cleans_up(artefact, tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from recipe.core import files\n"
        "with files.atomic_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(artefact)])
    assert killed.returncode == -signal.SIGKILL
    assert verify(artefact) == []
    with atomic_folder(artefact) as partial:
        (partial / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]
    assert (artefact / "whole").is_file()


def test_what_is_not_ours_is_never_replaced(tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(UsageError, match="not this recipe's to replace"), atomic_folder(precious):
        pass
    with pytest.raises(UsageError, match="is a file"), atomic_folder(precious / "thesis.tex"):
        pass
    assert (precious / "thesis.tex").read_text() == "..."


def test_inputs_are_hashed_by_content(artefact, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "x").write_text("x")
    before = hash_inputs({"artefact": artefact, "bare": bare, "file": bare / "x"})
    (bare / "x").write_text("y")
    after = hash_inputs({"artefact": artefact, "bare": bare, "file": bare / "x"})
    assert before["artefact"] == after["artefact"]
    assert before["bare"] != after["bare"] and before["file"] != after["file"]
    with pytest.raises(RecipeError, match="does not exist"):
        hash_inputs({"none": tmp_path / "none"})


def test_command_line_verifies_and_compares(artefact, tmp_path, capsys):
    assert provenance.main(["verify", str(artefact)]) == 0
    assert "intact, 2 files" in capsys.readouterr().out
    other = tmp_path / "other"
    with atomic_folder(other) as partial:
        (partial / "a.txt").write_text("beta")
        write_manifest(partial, "stage", {"k": 2}, {"raw": "00"}, {})
    assert provenance.main(["diff", str(artefact), str(other)]) == 1
    assert "config.k: 1 != 2" in capsys.readouterr().out
    assert provenance.main(["diff", str(artefact), str(artefact)]) == 0
    (artefact / "a.txt").write_text("ALPHA")
    assert provenance.main(["verify", str(artefact)]) == 1
    assert "a.txt was altered" in capsys.readouterr().out


def test_the_environment_names_the_lock_and_the_packages():
    found = environment()
    lock = Path(__file__).parents[2] / "docker" / "requirements.lock"
    assert found["lock"] == sha256(lock)
    assert found["torch"].startswith("2.")
    json.dumps(found)

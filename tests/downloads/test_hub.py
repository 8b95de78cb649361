"""Repositories of a hub on loopback that speaks the hub's protocol, through the library's endpoint setting."""

import hashlib
import json
import re
import time

import pytest

from recipe.core.errors import RecipeError
from recipe.downloads import hub, retry
from tests.downloads import server as servers
from tests.downloads.conftest import QUICK
from tests.downloads.server import close, redirect, stall, status, tag_of, truncate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 300
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"raise SystemExit",
    "tokenizer.model": b"pieces",
}
NEEDED = {"config.json", "model.safetensors", "tokenizer.model"}
TOKEN = "hf_s3cr3t"


def resolve(name: str) -> str:
    return f"/own/toy/resolve/{COMMIT}/{name}"


def git_blob(content: bytes) -> str:
    """By git's own command where one wants to know: `git hash-object`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(files: dict[str, bytes]) -> bytes:
    """What the hub says of a repository: large files by sha256, the others by git's hash."""
    siblings = []
    for name, content in files.items():
        item = {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
        if name.endswith((".safetensors", ".bin")):
            item["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        siblings.append(item)
    return json.dumps({"id": "own/toy", "sha": COMMIT, "siblings": siblings}).encode()


class Handler(servers.Handler):
    """Files at `resolve`, with the headers by which the library knows a version; HEAD as GET without a body."""

    def do_HEAD(self) -> None:
        content = self.server.place.files.get(self.path.partition("?")[0])
        headers = {"ETag": tag_of(content or b""), "X_Repo_Commit": COMMIT}
        if content is None:
            return self.answer(404)
        return self.answer(200, Content_Length=str(len(content)), **headers)


@pytest.fixture
def hub_server(monkeypatch):
    from huggingface_hub import constants, file_download

    with servers.serve(Handler) as place:
        place.files = {resolve(name): content for name, content in FILES.items()}
        place.files[f"/api/models/own/toy/revision/{COMMIT}"] = describe(FILES)
        place.files["/api/models/own/toy/revision/main"] = describe(FILES)
        place.files["/api/models/own/toy"] = describe(FILES)
        monkeypatch.setattr(constants, "ENDPOINT", place.url)
        template = f"{place.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        yield place


def fetch(folder):
    hub.fetch("own/toy", COMMIT, folder, patience=QUICK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_needed_files_of_a_commit(hub_server, tmp_path):
    assert hub.resolve("own/toy", "main", False, QUICK) == hub.resolve("own/toy", None, False, QUICK) == COMMIT
    assert fetch(tmp_path) == {name: FILES[name] for name in NEEDED}, "no code, no pickle, no notes of the library"
    assert not hub_server.requests(resolve("modeling_evil.py"))


@pytest.mark.parametrize(
    "faults",
    [[truncate(5000)], [stall(1.0)], [close()], [status(500)], [status(429, Retry_After="0")], [status(416)]],
    ids=["truncate", "stall", "close", "500", "429", "416"],
)
def test_what_passes_is_tried_again(hub_server, tmp_path, faults):
    hub_server.faults[resolve("model.safetensors")] = faults
    assert fetch(tmp_path)["model.safetensors"] == WEIGHTS


def test_an_interrupted_download_resumes_at_its_byte(hub_server, tmp_path):
    path = resolve("model.safetensors")
    hub_server.faults[path] = [stall(0, size=40_000), *[status(500)] * 20]
    with pytest.raises(RecipeError, match=r"stopped after 3 tries .*it resumes"):
        fetch(tmp_path)
    hub_server.faults.clear()
    assert fetch(tmp_path)["model.safetensors"] == WEIGHTS
    assert hub_server.requests(path)[-1]["Range"] == "bytes=40000-"


@pytest.mark.parametrize("cut", ["files", "notes", "both"])
def test_what_a_power_cut_left_half_written_is_downloaded_again(hub_server, tmp_path, cut):
    """The library trusts a file for which it has a note, and fails at half a note."""
    begun = tmp_path / hub.BEGUN
    notes = begun / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    for name in NEEDED:
        content, note = FILES[name], f"{COMMIT}\n{'0' * 64}\n{time.time() + 60}\n"
        (begun / name).write_bytes(content if cut == "notes" else content[: len(content) // 2])
        (notes / f"{name}.metadata").write_text(note if cut == "files" else note[: len(note) // 2])
    assert fetch(tmp_path) == {name: FILES[name] for name in NEEDED}


def test_a_file_in_its_place_is_compared_and_not_downloaded_again(hub_server, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "tokenizer.model").write_bytes(FILES["tokenizer.model"][::-1])
    assert fetch(tmp_path) == {name: FILES[name] for name in NEEDED}
    assert not hub_server.requests(resolve("model.safetensors"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_are_not_those_of_the_hubs_hash_are_removed(hub_server, tmp_path, name):
    """The file changed between the list of hashes and the download; its length is the same."""
    hub_server.files[resolve(name)] = FILES[name][::-1]
    with pytest.raises(RecipeError, match=rf"{name} is not what the hub's hash says"):
        fetch(tmp_path)
    assert not (tmp_path / name).exists()
    hub_server.files[resolve(name)] = FILES[name]
    assert fetch(tmp_path)[name] == FILES[name], "the next try begins anew"


def test_a_length_that_is_a_lie_ends_in_one_sentence(hub_server, tmp_path):
    hub_server.files[resolve("model.safetensors")] = WEIGHTS + b"more"
    with pytest.raises(RecipeError, match=r"model.safetensors is not what"):
        fetch(tmp_path)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_gated_repository_says_what_to_do_and_never_the_token(hub_server, tmp_path, monkeypatch, capsys, token):
    monkeypatch.setenv("HF_TOKEN", token)
    hub_server.faults[f"/api/models/own/toy/revision/{COMMIT}"] = [status(403, X_Error_Code="GatedRepo")]
    with pytest.raises(RecipeError, match="is gated and") as error:
        fetch(tmp_path)
    advice = "the token that was found has no access" if token else "no token was found: accept its licence"
    assert advice in str(error.value)
    assert token == "" or TOKEN not in str(error.value) + capsys.readouterr().err


def test_the_token_goes_to_the_hub_and_not_to_the_host_it_redirects_to(hub_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with servers.serve(Handler) as other:
        other.files["/cdn"] = WEIGHTS
        path = resolve("model.safetensors")
        hub_server.faults[path] = [redirect(f"http://localhost:{other.port}/cdn?Signature=x")]
        assert fetch(tmp_path)["model.safetensors"] == WEIGHTS
        assert hub_server.requests(path)[0]["authorization"] == f"Bearer {TOKEN}"
        assert not {"authorization", "Authorization"} & other.requests("/cdn")[0].keys()
    assert TOKEN not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404), "the hub answered 404"),
        (status(401, X_Error_Code="RepoNotFound"), "no such repository, or not for you"),
        (status(403), "is gated and no token"),
    ],
)
def test_what_does_not_pass_is_one_sentence(hub_server, tmp_path, fault, said):
    hub_server.faults["*"] = [fault]
    with pytest.raises(RecipeError, match=said) as error:
        hub.fetch("own/toy", COMMIT, tmp_path, patience=QUICK)
    assert "http" not in str(error.value)


def test_a_repository_of_other_kinds_of_files(hub_server, tmp_path):
    hub_server.files[f"/api/models/own/toy/revision/{COMMIT}"] = describe({"readme.md": b"x"})
    with pytest.raises(RecipeError, match="no file of a known kind"):
        fetch(tmp_path)


def test_the_disk_is_checked_before_anything_is_downloaded(hub_server, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "free_bytes", lambda path: 10)
    with pytest.raises(RecipeError, match=r"own/toy needs 0.0 GB"):
        fetch(tmp_path)
    assert not [path for path, _ in hub_server.seen if re.search("/resolve/", path)]


def test_the_hash_of_a_small_file_is_gits(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert hub.git_blob(tmp_path / "empty") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", "as git hash-object says"

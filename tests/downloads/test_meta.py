"""Meta's releases from a presigned URL, a mirror and a folder, all on loopback."""

import hashlib
from pathlib import Path

import pytest

from recipe.core.errors import RecipeError, UsageError
from recipe.downloads import meta, retry
from tests.downloads.conftest import QUICK
from tests.downloads.server import status, truncate

FILES = {
    "consolidated.00.pth": b"a" * 70_000,
    "consolidated.01.pth": b"b" * 50_000,
    "params.json": b'{"dim": 8}',
}
TOKENIZER = b"pieces"
ALL = {*FILES, "tokenizer.model", "checklist.chk", "tokenizer_checklist.chk"}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def release(prefix: str = "13B/") -> dict[str, bytes]:
    """Path -> content of a published release, checklists included."""
    lists = "".join(f"{md5(content)}  {name}\n" for name, content in FILES.items()).encode()
    paths = {f"{prefix}{name}": content for name, content in FILES.items()}
    paths |= {f"{prefix}checklist.chk": lists, "tokenizer.model": TOKENIZER}
    return paths | {"tokenizer_checklist.chk": f"{md5(TOKENIZER)}  tokenizer.model\n".encode()}


@pytest.fixture
def published(server):
    server.files = {f"/{path}": content for path, content in release().items()}
    return server


def fetch(place: str, folder: Path) -> dict[str, bytes]:
    meta.fetch("13B", place, folder, QUICK)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_presigned_url_takes_each_path_in_place_of_its_star(published, tmp_path, capsys):
    found = fetch(f"{published.url}/*?Policy=p&Signature=s3cr3t", tmp_path)
    assert found.keys() == ALL and found["consolidated.01.pth"] == FILES["consolidated.01.pth"]
    assert "s3cr3t" not in capsys.readouterr().err


def test_a_mirror_may_have_the_files_side_by_side(server, tmp_path):
    server.files = {f"/llama/{path}": content for path, content in release("").items()}
    assert fetch(f"{server.url}/llama/", tmp_path).keys() == ALL


def test_a_mirror_may_have_the_folders_of_the_release(published, tmp_path):
    assert fetch(published.url, tmp_path).keys() == ALL


@pytest.mark.parametrize("prefix", ["13B/", ""])
def test_a_folder_is_copied_and_checked_alike(tmp_path, prefix):
    for path, content in release(prefix).items():
        (tmp_path / "disk" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "disk" / path).write_bytes(content)
    assert fetch(str(tmp_path / "disk"), tmp_path / "out").keys() == ALL
    (tmp_path / "disk" / prefix / "consolidated.00.pth").write_bytes(b"x")
    with pytest.raises(RecipeError, match="differs from its md5"):
        fetch(str(tmp_path / "disk"), tmp_path / "again")


def test_an_interrupted_release_resumes_at_its_shard_and_byte(published, tmp_path):
    path = "/13B/consolidated.01.pth"
    published.faults[path] = [status(206, Content_Range="bytes 0-0/50000"), truncate(20_000), *[status(500)] * 9]
    with pytest.raises(RecipeError, match="stopped after"):
        fetch(f"{published.url}/*", tmp_path)
    assert (tmp_path / "consolidated.00.pth").is_file()
    published.faults.clear()
    published.seen.clear()
    assert fetch(f"{published.url}/*", tmp_path).keys() == ALL
    assert not published.requests("/13B/consolidated.00.pth"), "a finished shard is not downloaded again"
    assert published.requests(path)[-1]["Range"] == "bytes=20000-"


def test_the_note_of_a_process_that_was_killed_when_its_file_was_whole_goes(published, tmp_path):
    fetch(published.url, tmp_path)
    (tmp_path / "params.json.part.json").write_text("{}")
    assert fetch(published.url, tmp_path).keys() == ALL


def test_a_shard_that_differs_from_its_checksum_is_removed(published, tmp_path):
    published.files["/13B/consolidated.00.pth"] = b"c" * 70_000
    with pytest.raises(RecipeError, match=r"consolidated.00.pth differs from its md5 .* was removed"):
        fetch(f"{published.url}/*", tmp_path)
    assert not (tmp_path / "consolidated.00.pth").exists()
    published.files["/13B/consolidated.00.pth"] = FILES["consolidated.00.pth"]
    assert fetch(f"{published.url}/*", tmp_path).keys() == ALL


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>Please log in</html>", "not a list of md5 checksums"),
        (b"x" * 70_000, "too large for a list"),
        (b"0" * 32 + b"  ../../etc/passwd\n", "not a list of md5 checksums"),
        (b"0" * 32 + b"  consolidated.00.pth\n", "expected params.json and consolidated.00.pth onwards"),
        (b"0" * 32 + b"  params.json\n" + b"0" * 32 + b"  consolidated.01.pth\n", "lists consolidated.01.pth, params"),
    ],
)
def test_a_checklist_that_is_none_names_no_file_outside_and_no_shard_is_missing(published, tmp_path, content, said):
    published.files["/13B/checklist.chk"] = content
    with pytest.raises(RecipeError, match=said):
        fetch(f"{published.url}/*", tmp_path)
    assert not published.requests("/13B/consolidated.00.pth")


def test_an_expired_link_and_no_link(published, tmp_path):
    published.faults["*"] = [status(403)]
    with pytest.raises(RecipeError, match="a signed link expires"):
        fetch(f"{published.url}/*", tmp_path)
    with pytest.raises(UsageError, match="set the variable META_URL"):
        fetch("", tmp_path)
    with pytest.raises(UsageError, match="neither a folder nor an http address"):
        fetch(str(tmp_path / "nowhere"), tmp_path)


def test_the_disk_is_checked_before_the_first_shard(published, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "free_bytes", lambda path: 100_000)
    with pytest.raises(RecipeError, match=r"13B needs 0.0 GB"):
        fetch(f"{published.url}/*", tmp_path)
    assert all(header["Range"] == "bytes=0-0" for header in published.requests("/13B/consolidated.00.pth"))

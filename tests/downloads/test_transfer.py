"""One file from servers that truncate, stall, refuse, redirect, lie about lengths and change the file."""

import shutil
from collections import namedtuple

import pytest

from recipe.core.errors import RecipeError
from recipe.downloads import retry, transfer
from tests.downloads import server as servers
from tests.downloads.conftest import QUICK
from tests.downloads.server import close, redirect, stall, status, truncate, wrong_part

CONTENT = bytes(range(256)) * 400
SECRET = "Signature=s3cr3t"


def fetch(server, path="/w.pth"):
    """The content that arrives at the end of one call."""
    return fetch_to(server, server.folder / "w.pth", path)


def fetch_to(server, target, path="/w.pth"):
    transfer.fetch(f"{server.url}{path}?{SECRET}", target, QUICK)
    return target.read_bytes()


@pytest.fixture(autouse=True)
def folder(server, tmp_path):
    server.folder = tmp_path
    server.files["/w.pth"] = CONTENT


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ([], 1),
        ([truncate(5000)], 2),
        ([truncate(5000), truncate(0), truncate(7000)], 4),
        ([stall(1.0)], 2),
        ([stall(1.0, size=9000)], 2),
        ([close(), close()], 3),
        ([status(500), status(503)], 3),
        ([status(429, Retry_After="0")], 2),
        ([status(416)], 2),
        ([truncate(5000), status(416)], 3),
        ([truncate(5000), wrong_part], 3),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, list) else str(value),
)
def test_what_passes_is_tried_again_until_the_file_is_whole(server, faults, requests):
    server.faults["/w.pth"] = list(faults)
    assert fetch(server) == CONTENT
    assert len(server.requests("/w.pth")) == requests
    assert [path.name for path in server.folder.iterdir()] == ["w.pth"], "nothing is left beside the file"


def test_a_broken_download_resumes_at_its_byte_in_the_next_process(server, capsys):
    server.faults["/w.pth"] = [truncate(65_536), *[close()] * 9]
    with pytest.raises(RecipeError, match=r"stopped after 3 tries .*it resumes"):
        fetch(server)
    assert (server.folder / "w.pth.part").stat().st_size == 65_536
    server.faults.clear()
    assert fetch(server) == CONTENT
    last = server.requests("/w.pth")[-1]
    assert last["Range"] == "bytes=65536-" and last["If-Range"] == servers.tag_of(CONTENT)


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_between_two_requests_is_never_mixed(server, etags):
    server.etags = etags
    server.faults["/w.pth"] = [truncate(65_536), *[close()] * 9]
    with pytest.raises(RecipeError):
        fetch(server)
    changed = CONTENT[::-1] + b"more"
    server.files["/w.pth"], server.faults["/w.pth"] = changed, []
    assert fetch(server) == changed


def test_a_server_that_ignores_ranges_begins_anew(server):
    server.faults["/w.pth"] = [truncate(5000), lambda handler, content: handler.answer(200, content)]
    assert fetch(server) == CONTENT


def test_a_length_that_is_a_lie_is_not_believed(server):
    """Fewer bytes than announced, every time; and a total that differs from the part's."""
    server.faults["/w.pth"] = [truncate(100)] * 2 + [truncate(0)] * 9
    with pytest.raises(RecipeError, match="stopped after"):
        fetch(server)
    assert not (server.folder / "w.pth").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [(403, "a signed link expires"), (404, "does not have it"), (401, "asks for a login"), (418, "answered 418")],
)
def test_what_does_not_pass_is_one_sentence_at_once_without_the_signature(server, capsys, number, said):
    server.faults["/w.pth"] = [status(number)]
    with pytest.raises(RecipeError, match=said) as error:
        fetch(server)
    assert len(server.requests("/w.pth")) == 1
    assert "s3cr3t" not in str(error.value) + capsys.readouterr().err


def test_failures_that_last_end_in_one_sentence_without_the_signature(server, capsys):
    server.faults["/w.pth"] = [status(500)] * 9
    with pytest.raises(RecipeError, match=r"stopped after 3 tries .the server answered 500.") as error:
        fetch(server)
    said = str(error.value) + capsys.readouterr().err
    assert "s3cr3t" not in said and "trying again in 0.01 s" in said


def test_a_redirect_to_another_host_does_not_take_the_password_along(server):
    with servers.serve() as other:
        other.files["/elsewhere"] = CONTENT
        server.faults["/w.pth"] = [redirect(f"http://localhost:{other.port}/elsewhere")]
        url = f"http://user:s3cr3t@127.0.0.1:{server.port}/w.pth"
        transfer.fetch(url, server.folder / "w.pth", QUICK)
        assert (server.folder / "w.pth").read_bytes() == CONTENT
        assert "Authorization" in server.requests("/w.pth")[0]
        assert "Authorization" not in other.requests("/elsewhere")[0]
        assert transfer.public(url) == f"{server.url}/w.pth"


def test_redirects_in_a_circle_and_no_server_at_all(server):
    server.faults["/w.pth"] = [redirect("/w.pth")] * 40
    with pytest.raises(RecipeError, match="in a circle"):
        fetch(server)
    with pytest.raises(RecipeError, match="not an http or https address"):
        transfer.fetch("ftp://127.0.0.1/x", server.folder / "x", QUICK)
    with pytest.raises(RecipeError, match="the connection failed"):
        transfer.fetch("http://127.0.0.1:9/x", server.folder / "x", QUICK)


def test_size_by_range_by_length_or_unknown(server):
    assert transfer.size(f"{server.url}/w.pth", QUICK) == len(CONTENT)
    server.faults["/w.pth"] = [lambda handler, content: handler.answer(200, content), status(416)]
    assert transfer.size(f"{server.url}/w.pth", QUICK) == len(CONTENT)
    assert transfer.size(f"{server.url}/w.pth", QUICK) is None


def test_a_full_disk_is_found_before_the_first_byte(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 999))
    retry.check_disk(tmp_path / "not" / "there", 999, "toy")
    with pytest.raises(RecipeError, match=r"toy needs 0.0 GB and 0.0 GB are free .*choose another --output"):
        retry.check_disk(tmp_path / "not" / "there", 1000, "toy")

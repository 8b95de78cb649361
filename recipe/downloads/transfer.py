"""One file over http(s): resumed by range, bounded in time, never mixed from two versions of the file.

A URL may carry a signature or a password, so no message shows more of it than its host and path.
"""

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.text import printable, progress
from recipe.downloads.retry import PASSING, PATIENT, Passing, Patience, retry

if TYPE_CHECKING:
    from requests import Response

CHUNK = 1 << 20
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)  # of the file, not of the connection
REFUSED = {
    401: "asks for a login: check the link or the password in it",
    403: "refuses access: a signed link expires (Meta's after a day), so request a new one",
    404: "does not have it: check the link and the name",
    410: "no longer has it: look for another source",
}
REASONS = {
    "ReadTimeout": "no byte arrived in time",
    "ReadTimeoutError": "no byte arrived in time",
    "ConnectTimeout": "the server did not answer in time",
    "ConnectionError": "the connection failed",
    "ProtocolError": "the connection broke off",
    "IncompleteRead": "the connection broke off",
}


class Missing(RecipeError):
    """The server says that there is no such file."""


def public(url: str) -> str:
    """Host and path of a URL: without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}")


def size(url: str, patience: Patience = PATIENT) -> int | None:
    """Bytes of the file by its headers, None if the server does not say. By GET: a signature may allow no HEAD."""

    def ask() -> int | None:
        with open_url(url, {"Range": "bytes=0-0"}, patience) as response:
            if response.status_code == 206:
                return _total(response)
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() and response.status_code == 200 else None

    return retry(ask, public(url), patience)


def fetch(url: str, target: Path, patience: Patience = PATIENT) -> None:
    """Download `url` to `target`. An interrupted download leaves `target`.part, from which the next call resumes.

    Raises RecipeError: the server refuses (`Missing` where it has no such file), or does not deliver the whole file
    in all tries.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    retry(lambda: _continue(url, part, patience), f"download of {target.name}", patience)
    part.rename(target)
    _note(part).unlink(missing_ok=True)


@contextmanager
def open_url(url: str, headers: dict[str, str], patience: Patience) -> "Iterator[Response]":
    """A response whose body was not read yet: of status 200, 206 or 416. Raises Passing or RecipeError on others."""
    import requests

    try:
        # identity: a compressed body has other lengths than the file
        with requests.get(
            url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=patience.timeout
        ) as response:
            _check_status(url, response)
            yield response
    except requests.exceptions.SSLError as error:
        raise RecipeError(
            f"{public(url)} has no valid certificate ({type(error).__name__}): check the clock and REQUESTS_CA_BUNDLE"
        ) from None
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise RecipeError(f"{public(url)} is not an http or https address: correct the link") from None
    except requests.exceptions.TooManyRedirects:
        raise RecipeError(f"{public(url)} redirects in a circle: check the link") from None
    except requests.exceptions.RequestException as error:
        raise Passing(_reason(error)) from None


def _check_status(url: str, response: "Response") -> None:
    if urlsplit(url).scheme == "https" and urlsplit(response.url).scheme != "https":
        raise RecipeError(f"{public(url)} redirects to an unencrypted address: use another source")
    status = response.status_code
    if status in PASSING:
        wait = response.headers.get("Retry-After", "")
        raise Passing(f"the server answered {status}", float(wait) if wait.isdecimal() else 0.0)
    if status not in (200, 206, 416):
        kind = Missing if status in (404, 410) else RecipeError
        raise kind(f"{public(url)}: the server {REFUSED.get(status, f'answered {status}: try another source')}")


def _continue(url: str, part: Path, patience: Patience) -> None:
    """Append what is missing to `part`, or begin it anew if the file changed. Raises Passing if it is not whole yet."""
    have, version = _state(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and (validator := version.get("etag") or version.get("modified")):
        headers["If-Range"] = validator
    with open_url(url, headers, patience) as response:
        if response.status_code == 416:  # nothing lies beyond `have`: complete, or of another version
            if have and _total(response) == have:
                return
            _discard(part)
            raise Passing("the server refuses to resume")
        if not _resumes(response, have, version):
            _discard(part)
            have = 0
            if response.status_code == 206:  # a part that does not continue what is here
                raise Passing("the file changed on the server")
        expected = _expected(response, have)
        with atomic_file(_note(part)) as file:
            json.dump(_version(response, expected), file)
        got = _write(response, part, have, expected)
    if expected is not None and got != expected:
        if got > expected:
            _discard(part)
        raise Passing(f"{got:,} of {expected:,} bytes arrived", progress=got > have)


def _write(response: "Response", part: Path, have: int, expected: int | None) -> int:
    """Append the body to `part`; its size. Raises Passing if the connection breaks or stalls."""
    from urllib3.exceptions import HTTPError

    got = have
    with (
        open(part, "ab") as file,
        progress(total=expected, initial=have, desc=part.name, unit="B", unit_scale=True) as bar,
    ):
        try:
            while chunk := response.raw.read1(CHUNK):  # what has arrived: nothing is lost if the rest does not come
                file.write(chunk)
                got += len(chunk)
                bar.update(len(chunk))
        except (HTTPError, OSError) as error:
            if getattr(error, "errno", None) in DISK:
                raise
            raise Passing(_reason(error), progress=got > have) from None
    return got


def _resumes(response: "Response", have: int, version: dict[str, Any]) -> bool:
    """Whether the body continues the bytes that are here: the right place, in the same version of the file."""
    if response.status_code != 206:
        return have == 0
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if not start or int(start[1]) != have:
        return False
    now = _version(response, _total(response))
    return all(now[key] == version[key] for key in now if have and now[key] and version.get(key))


def _version(response: "Response", total: int | None) -> dict[str, Any]:
    etag = response.headers.get("ETag", "")
    return {
        "etag": "" if etag.startswith("W/") else etag,  # a weak one does not promise the same bytes
        "modified": response.headers.get("Last-Modified", ""),
        "bytes": total,
    }


def _expected(response: "Response", have: int) -> int | None:
    if response.status_code == 206:
        return _total(response)
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isdecimal() else None


def _total(response: "Response") -> int | None:
    found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _state(part: Path) -> tuple[int, dict[str, Any]]:
    """(bytes that are here, the version that they belong to). Bytes of an unknown version are not continued."""
    try:
        version = json.loads(_note(part).read_text(encoding="utf-8"))
        return part.stat().st_size, dict(version)
    except (OSError, ValueError, TypeError):
        _discard(part)
        return 0, {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _reason(error: Exception) -> str:
    """What a person needs of an error of the network. Its own text holds the URL."""
    name = type(error).__name__
    return REASONS.get(name, name)

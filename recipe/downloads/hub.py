"""Repositories of the Hugging Face hub at one commit: only the files needed, resumed, checked against its hashes."""

import glob
import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recipe.core.errors import RecipeError
from recipe.core.files import sha256
from recipe.core.text import lasting_stderr, say, snippet
from recipe.downloads.retry import PASSING, PATIENT, Passing, Patience, check_disk, retry

Result = TypeVar("Result")
COMMIT = r"[0-9a-f]{40}"
CACHE = ".cache"  # notes of the library, by which an interrupted download resumes
BEGUN = f"{CACHE}/files"  # what it downloads into: a killed one leaves files in the folder above
WEIGHTS = ("*.json", "*.model", "*.safetensors", "*.bin", "*.pth", "*.gguf", "*.txt")  # weights, tokenizer; no code
DATA = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.csv", "*.tsv")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `sha256` of large files, `blob` (git's sha1) of the others."""

    name: str
    bytes: int
    sha256: str
    blob: str


def resolve(repository: str, revision: str | None, data: bool, patience: Patience = PATIENT) -> str:
    """The commit that a revision points to now, so that a manifest names bytes and not a moving branch."""
    if revision and re.fullmatch(COMMIT, revision):
        return revision
    found = _ask(repository, lambda: _api().repo_info(repository, revision=revision, repo_type=_kind(data)), patience)
    return str(found.sha)


def fetch(
    repository: str,
    commit: str,
    folder: Path,
    data: bool = False,
    patterns: Sequence[str] = (),
    patience: Patience = PATIENT,
) -> None:
    """Download the needed files (`patterns`, or those of weights or data) into `folder`; a second call resumes.

    Files that are in their places were compared with the hub's hashes. Raises RecipeError: no such repository or no
    access, too little disk, a file that is not what the hub's hash says.
    """
    wanted = choose(list_files(repository, commit, data, patience), patterns or (DATA if data else WEIGHTS))
    if not wanted:
        raise RecipeError(f"{repository} at {commit[:12]} has no file of a known kind: look at its page on the hub")
    begun, missing = folder / BEGUN, [file for file in wanted if not is_whole(folder / file.name, file)]
    check_disk(folder, sum(file.bytes for file in missing if not (begun / file.name).is_file()), repository)
    total = sum(file.bytes for file in wanted) / 1e6
    say(f"download {repository} at {commit[:12]}: {len(wanted)} files, {total:,.0f} MB")
    if missing:
        drop_torn(begun, missing)
        _download(repository, commit, begun, data, missing, patience)
    for file in missing:
        check(begun / file.name, file)
    for file in missing:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        (begun / file.name).replace(folder / file.name)
    shutil.rmtree(folder / CACHE, ignore_errors=True)


def _download(
    repository: str, commit: str, folder: Path, data: bool, files: Sequence[RemoteFile], patience: Patience
) -> None:
    from huggingface_hub import snapshot_download

    names = [glob.escape(file.name) for file in files]

    def download() -> str:
        return snapshot_download(
            repository, revision=commit, repo_type=_kind(data), local_dir=folder, allow_patterns=names
        )

    with lasting_stderr():
        _ask(repository, download, patience)


def list_files(repository: str, commit: str, data: bool, patience: Patience = PATIENT) -> list[RemoteFile]:
    """All files of the repository at this commit, with the hub's sizes and hashes."""

    def ask() -> Any:
        return _api().repo_info(repository, revision=commit, repo_type=_kind(data), files_metadata=True)

    found = _ask(repository, ask, patience).siblings or []
    return [
        RemoteFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else "", item.blob_id or "")
        for item in found
    ]


def choose(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """The files that match; of weights stored twice, the safetensors and not the pickles."""
    from huggingface_hub.utils import filter_repo_objects

    twice = ["*.bin", "*.pth"] if any(file.name.endswith(".safetensors") for file in files) else None
    return list(filter_repo_objects(files, allow_patterns=list(patterns), ignore_patterns=twice, key=lambda f: f.name))


def drop_torn(begun: Path, files: Sequence[RemoteFile]) -> None:
    """Remove what a power cut left half written: the library would trust such files, and fail at such notes."""
    for file in files:
        path = begun / file.name
        if path.is_file() and path.stat().st_size != file.bytes:
            path.unlink()
    for note in (begun / CACHE).rglob("*.metadata"):
        try:
            float(note.read_bytes().split(b"\n")[2])  # commit, etag, time
        except (ValueError, IndexError):
            note.unlink()


def is_whole(path: Path, expected: RemoteFile) -> bool:
    """Whether a file is there and is what the hub's hash says."""
    if not path.is_file() or path.stat().st_size != expected.bytes:
        return False
    if expected.sha256:
        return sha256(path) == expected.sha256
    return not expected.blob or git_blob(path) == expected.blob


def check(path: Path, expected: RemoteFile) -> None:
    """Compare a downloaded file with the hub's hash. A wrong one is removed and RecipeError raised."""
    if not is_whole(path, expected):
        path.unlink(missing_ok=True)
        raise RecipeError(
            f"{path.name} is not what the hub's hash says, so it was removed: run the same command again, and if it "
            "stays so, look for a proxy that changes downloads"
        )


def git_blob(path: Path) -> str:
    """The name that git gives to a file's content: sha1 over a header with its size, and its bytes."""
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # noqa: S324 - git's own hash
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _kind(data: bool) -> str:
    return "dataset" if data else "model"


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _ask(repository: str, call: Callable[[], Result], patience: Patience) -> Result:
    """A call of the hub's library, tried again where that can help. Its errors hold addresses, so none is shown."""
    from huggingface_hub import constants, logging

    logging.set_verbosity_error()  # its warnings print signed addresses
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = patience.timeout  # type: ignore[assignment]
    return retry(lambda: _translate(repository, call), f"download of {repository}", patience)


def _translate(repository: str, call: Callable[[], Result]) -> Result:
    """`call()`; what it raises becomes Passing or a RecipeError."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from requests.exceptions import RequestException

    try:
        return call()
    except GatedRepoError:
        raise RecipeError(_gated(repository)) from None
    except RepositoryNotFoundError:
        raise RecipeError(
            f"{repository} cannot be reached: the hub has no such repository, or not for you; check the name, and for "
            "a private one set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError as error:  # what the library makes of a failed question about a file
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _failure(repository, cause) from None
        raise Passing(type(cause or error).__name__) from None
    except HfHubHTTPError as error:
        raise _failure(repository, error) from None
    except RequestException as error:
        raise Passing(type(error).__name__) from None
    except OSError as error:
        if "Consistency check failed" in str(error):  # fewer or more bytes than announced
            raise Passing("the wrong number of bytes arrived") from None
        raise


def _failure(repository: str, error: Any) -> Exception:
    status = error.response.status_code if error.response is not None else 0
    if status in PASSING:
        wait = error.response.headers.get("Retry-After", "")
        return Passing(f"the hub answered {status}", float(wait) if wait.isdecimal() else 0.0)
    if status == 416:
        return Passing("the hub refuses to resume")
    if status in (401, 403):
        return RecipeError(_gated(repository))
    return RecipeError(
        f"{repository} cannot be reached (the hub answered {status}, {snippet(type(error).__name__)}); check the name "
        "and the revision"
    )


def _gated(repository: str) -> str:
    """What to do about a gated repository. The token itself is never shown."""
    from huggingface_hub import get_token

    if get_token():
        return (
            f"{repository} is gated and the token that was found has no access: accept its licence on its page with "
            "the account of that token, and give a fine-grained token the right to read gated repositories"
        )
    return (
        f"{repository} is gated and no token was found: accept its licence on its page, then set the variable "
        "HF_TOKEN to a token of that account that may read"
    )

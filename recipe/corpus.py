"""Prepare the corpus: raw conversations in; train.jsonl, val.jsonl and an account of every drop out."""

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.conversations import identity, templates
from recipe.conversations.formats import detect, export
from recipe.conversations.messages import Message
from recipe.conversations.pipeline import assembly, resolve, shards, stats, workers
from recipe.conversations.pipeline.shards import Job, Part
from recipe.conversations.templates import Piece
from recipe.conversations.tokens import check_template, encoders, visible
from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import atomic_folder, check_ours, digest
from recipe.core.manifest import completed, hash_inputs, write_manifest
from recipe.core.text import printable, progress, say, show
from recipe.core.versions import code_sha256
from recipe.reports import corpus_html
from recipe.reports.corpus import markdown, marked

STAGE = "corpus"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def run(config: Config) -> dict[str, Any]:
    """Prepare the corpus that `config` describes, unless its manifest proves it done; the manifest.

    Raises UsageError for what `config` cannot mean, RecipeError for a source that cannot be read and where nothing is
    left to train on.
    """
    settings, inputs = identify(config)
    folder = Path(config.corpus.path)
    if manifest := completed(folder, STAGE, settings, inputs):
        say(f"{folder} is prepared already: its manifest holds")
        return manifest
    check_ours(folder)
    started = time.monotonic()
    for source in resolve.sources_of(config):
        detect.check(source.path, source.layout)
    if config.corpus.processes != 1:
        workers.get_ready()
    tokenizer = load_tokenizer(config)
    check_template(tokenizer, config.corpus.template)
    work = parts_folder(folder, digest([settings, inputs, code_sha256()]))
    try:
        count = prepare(config, work, tokenizer)
        with atomic_folder(folder) as partial:
            results = assembly.assemble(config, partial, work, count)
            write_reports(partial, results, config, tokenizer)
            manifest = write_manifest(partial, STAGE, settings, inputs, results)
    except RecipeError as error:
        if not isinstance(error, shards.KilledError):  # then the finished parts are worth keeping
            shutil.rmtree(work.parent)
        raise
    shutil.rmtree(work.parent)
    seconds = time.monotonic() - started
    read = sum(account["conversations"]["read"] for account in results["sources"].values())
    say(f"{read:,} conversations in {seconds:.1f} s: {read / seconds:,.0f} a second")
    return manifest


def identify(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """(settings, hashes of the inputs): what makes two corpora the same. Raises UsageError where they cannot be."""
    corpus = config.corpus
    configs.required(config, "corpus.path", "--output DIR")
    base = Path(configs.required(config, "base.path", "--tokenizer DIR"))
    if not corpus.identity_name:
        configs.required(config, "corpus.sources", "--source FILE")
    elif not corpus.identity_organisation:
        raise UsageError("corpus.identity_name is set and identity_organisation is empty: say who made the model")
    templates.get(corpus.template)
    resolve.check(config)
    if not (base / TOKENIZER_FILES[0]).is_file():
        raise UsageError(f"{base} has no {TOKENIZER_FILES[0]}: convert the base first (`python -m recipe.convert`)")
    files = {f"source {number}: {Path(source).name}": Path(source) for number, source in enumerate(corpus.sources)}
    files |= {f"prompts {number}": Path(source) for number, source in enumerate(corpus.decontaminate)}
    files |= {name: base / name for name in TOKENIZER_FILES if (base / name).is_file()}
    if own_template := templates.file(corpus.template):
        files["template"] = own_template
    # Files by content, not by path.
    settings = configs.hashed(corpus) | {
        "decontaminate": len(corpus.decontaminate),
        "template": Path(corpus.template).name,
    }
    return settings, hash_inputs(files)


def load_tokenizer(config: Config) -> Any:
    """The base's tokenizer, without its weights and without loading torch for them.

    As tokenizer.json has it: the same ids as those of the class that its config names, in half the time.
    """
    from transformers import PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()  # it would warn of the other class's name
    return PreTrainedTokenizerFast.from_pretrained(config.base.path, local_files_only=True)


def parts_folder(folder: Path, key: str) -> Path:
    """Where finished parts of this very work lie until all of it is done; those of other work are removed."""
    work = folder.with_name(f".{folder.name}.parts") / key[:16]
    if not work.is_dir():
        shutil.rmtree(work.parent, ignore_errors=True)
        work.mkdir(parents=True)
    return work


def prepare(config: Config, work: Path, tokenizer: Any) -> int:
    """Every source in parts, with a progress bar; how many parts there are."""
    corpus, given = config.corpus, resolve.sources_of(config)
    made = identity.training(corpus.identity_name, corpus.identity_organisation) if corpus.identity_name else []
    prompts = [prompt for path in corpus.decontaminate for prompt in resolve.prompts_of(Path(path))]
    rules = resolve.rules_of(config, prompts)
    job = Job(encoders(tokenizer), corpus.template, corpus.max_length, rules, corpus.seed)
    sizes = [resolve.size(source.path) for source in given]
    before = {source.name: sum(sizes[:index]) for index, source in enumerate(given)}
    started, read = time.monotonic(), 0
    with progress(total=sum(sizes), unit="B", unit_scale=True, desc="prepare") as bar:

        def tell(part: Part, count: int) -> None:
            nonlocal read
            read += count
            bar.set_postfix_str(f"{read / (time.monotonic() - started):,.0f} conversations/s", refresh=False)
            bar.update(max(0, min(bar.total, before.get(part.source.name, 0) + part.ends) - bar.n))

        processes = corpus.processes or len(os.sched_getaffinity(0))
        count = sum(1 for _ in shards.prepare(shards.divide(given, made), work, job, processes, tell))
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
    """A sample as the pieces that are trained on."""
    return templates.render(config.corpus.template, [Message(**message) for message in sample["messages"]])


def show_samples(config: Config, count: int, colour: bool) -> Iterator[str]:
    """`count` samples from all over the training part, as rendered, what is trained on marked."""
    with open(prepared(config) / "train.jsonl", encoding="utf-8") as lines:
        total = sum(1 for _ in lines)
        lines.seek(0)
        for line in itertools.islice(lines, 0, None, max(1, total // count)):
            sample = json.loads(line)
            yield f"--- {printable(sample['id'])}\n{marked(rendered(config, sample), colour)}\n"
            if (count := count - 1) == 0:
                return


def export_to(config: Config, layout: str) -> Path:
    """The prepared corpus in another program's layout, as a folder of its own beside it."""
    corpus = prepared(config)
    folder = corpus.with_name(f"{corpus.name}-{layout}")
    with atomic_folder(folder) as partial:
        for part in ("train", "val"):
            with open(partial / f"{part}.json", "w", encoding="utf-8") as file:
                file.writelines(export.lines(corpus / f"{part}.jsonl", layout))
        inputs = hash_inputs({"corpus": corpus})
        write_manifest(partial, "export", {"layout": layout}, inputs, {})
    return folder


def prepared(config: Config) -> Path:
    folder = Path(configs.required(config, "corpus.path", "--output DIR"))
    if not (folder / "train.jsonl").is_file():
        raise UsageError(f"no prepared corpus at {folder}: name sources to prepare one")
    return folder


def summary(results: dict[str, Any], folder: Path) -> str:
    """The result in a few lines."""
    samples, tokens, trained = (results[key] for key in ("samples", "tokens", "trained_tokens"))
    kept, read = (
        sum(account["conversations"][key] for account in results["sources"].values()) for key in ("kept", "read")
    )
    return (
        f"{kept:,} of {read:,} conversations kept: {samples['train']:,} samples to train on, "
        f"{samples['val']:,} held out\n"
        f"{tokens['train']:,} tokens to train on, {trained['train'] / tokens['train']:.0%} of them with a loss; "
        f"a sample has {results['lengths']['median']:,} (median), at most {results['lengths']['max']:,}\n"
        f"{folder}/report.md says what was dropped and why, report.html shows samples"
    )


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(
        STAGE, __doc__ or "", "python -m recipe.corpus --source raw.json --tokenizer models/base --output data/mine"
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    flags = {"corpus.sources": args.source, "corpus.path": args.output, "base.path": args.tokenizer}
    config = load_config(args, flags)
    if args.show is not None and args.show < 1:
        raise UsageError(f"--show {args.show}: expected 1 or more")
    if args.show and args.json:
        raise UsageError("--show prints text and --json one JSON object: give one of them")
    only_look = bool(args.show or args.export) and not config.corpus.sources and not config.corpus.identity_name
    if not only_look:
        settings, inputs = identify(config)
        if args.dry_run:
            is_done = completed(Path(config.corpus.path), STAGE, settings, inputs) is not None
            text = f"{config.corpus.path} is prepared already" if is_done else f"would write {config.corpus.path}"
            show({"done": is_done, "inputs": inputs, "config": settings}, text, args.json)
            return 0
        manifest = run(config)
        show(manifest, summary(manifest["results"], Path(config.corpus.path)), args.json)
    if args.show:
        for text in show_samples(config, args.show, sys.stdout.isatty()):
            print(text)
    if args.export:
        say(f"exported to {export_to(config, args.export)}")
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", nargs="+", metavar="FILE", help="raw conversation files (corpus.sources)")
    parser.add_argument("--output", metavar="DIR", help="where the prepared corpus goes (corpus.path)")
    parser.add_argument("--tokenizer", metavar="DIR", help="the converted base, for its tokenizer (base.path)")
    parser.add_argument("--show", type=int, metavar="N", help="print N samples, what is trained on coloured")
    parser.add_argument(
        "--export", choices=sorted(export.EXPORTS), help="also write the corpus in another program's layout"
    )


if __name__ == "__main__":
    os.environ.update(USE_TORCH="0", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")  # a tokenizer needs no torch: 2 s less
    sys.exit(entry(main))

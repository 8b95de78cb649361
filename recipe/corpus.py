"""Prepare the corpus: raw conversations in; train.jsonl, val.jsonl and an account of every drop out."""

import argparse
import itertools
import json
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe import config as configs
from recipe import console, provenance
from recipe.config import Config
from recipe.conversations import formats, identity, overview, splitting, templates
from recipe.conversations.accounting import Account
from recipe.conversations.formats import Conversation, Message
from recipe.conversations.jsonstream import Rejected
from recipe.conversations.preparing import Preparation
from recipe.conversations.splitting import Sample
from recipe.errors import RecipeError, UsageError

STAGE = "corpus"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def run(config: Config) -> dict[str, Any]:
    """Prepare the corpus that `config` describes, unless its manifest proves it done; the manifest.

    Raises UsageError for what `config` cannot mean, RecipeError for a source that cannot be read and where nothing is
    left to train on.
    """
    settings, inputs = identify(config)
    folder = Path(config.corpus.path)
    if manifest := provenance.done(folder, STAGE, settings, inputs):
        console.say(f"{folder} is prepared already: its manifest holds")
        return manifest
    started = time.monotonic()
    preparation = Preparation(load_tokenizer(config), config.corpus.template, config.corpus.max_length)
    with provenance.atomic_folder(folder) as partial:
        train, val = Part(partial / "train.jsonl"), Part(partial / "val.jsonl")
        with train, val:
            for item in read_all(config):
                if prepared := preparation.take(item):
                    place = splitting.position(prepared[0], config.corpus.seed)
                    (val if place < config.corpus.val_fraction else train).add(*prepared, place)
        check_not_empty(train, val, preparation.accounts)
        even_out(train, val, config.corpus.val_fraction)
        train.repeat_identity(config.corpus.identity_repeat)
        results = results_of(train, val, preparation, config)
        (partial / "report.md").write_text(overview.markdown(results, settings), encoding="utf-8")
        manifest = provenance.write_manifest(partial, STAGE, settings, inputs, results)
    seconds = time.monotonic() - started
    read = sum(account.conversations for account in preparation.accounts.values())
    console.say(f"{read:,} conversations in {seconds:.1f} s: {read / seconds:,.0f} a second")
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
    if not 0 <= corpus.val_fraction < 1:
        raise UsageError(f"corpus.val_fraction is {corpus.val_fraction}: expected a share from 0 to below 1")
    if corpus.identity_repeat < 1:
        raise UsageError(f"corpus.identity_repeat is {corpus.identity_repeat}: expected 1 or more")
    templates.get(corpus.template)
    for source in corpus.sources:
        if not Path(source).is_file():
            raise UsageError(f"there is no file {source}: name raw conversation files (JSON or JSON lines)")
    if not (base / TOKENIZER_FILES[0]).is_file():
        raise UsageError(f"{base} has no {TOKENIZER_FILES[0]}: convert the base first (`python -m recipe.convert`)")
    files = {f"source {number}: {Path(source).name}": Path(source) for number, source in enumerate(corpus.sources)}
    files |= {name: base / name for name in TOKENIZER_FILES if (base / name).is_file()}
    return configs.hashed(corpus), provenance.hash_inputs(files)


def load_tokenizer(config: Config) -> Any:
    """The base's tokenizer, without its weights and without loading torch for them."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(config.base.path, local_files_only=True)


def read_all(config: Config) -> Iterator[Conversation | Rejected]:
    """The identity conversations, then every source's; with a progress bar."""
    corpus = config.corpus
    if corpus.identity_name:
        yield from identity.training(corpus.identity_name, corpus.identity_organisation)
    sources = [Path(source) for source in corpus.sources]
    total = sum(source.stat().st_size for source in sources)
    with console.progress(total=total, unit="B", unit_scale=True, desc="prepare") as bar:
        before = 0  # bytes of the sources already read
        for source in sources:
            for item in formats.read(source, at=lambda offset: bar.update(before + offset - bar.n)):  # noqa: B023
                if isinstance(item, Rejected):
                    console.say(f"{source}, byte {item.offset:,}: {item.reason}: {overview.printable(item.detail)}")
                yield item
            before += source.stat().st_size
            bar.update(before - bar.n)


class Part:
    """The training or the validation part: a file of samples, with their numbers in memory (16 bytes a sample)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens, self.trained = array("I"), array("I")
        self.places = array("d")  # where each sample's conversation stands in [0, 1): see splitting.position

    def __enter__(self) -> "Part":
        self._file = open(self.path, "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, conversation: Conversation, samples: Sequence[Sample], place: float) -> None:
        """Append a conversation's samples."""
        for number, sample in enumerate(samples):
            line = {
                "id": conversation.id if len(samples) == 1 else f"{conversation.id}#{number}",
                "source": conversation.source,
                "messages": [{"role": message.role, "content": message.content} for message in sample.messages],
            }
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._count(sample.tokens, sample.trained, place)

    def move_to(self, other: "Part", place: float) -> None:
        """Give all samples of the conversations that stand at `place` to the other part; for small corpora only."""
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        rows = list(zip(lines, self.tokens, self.trained, self.places, strict=True))
        self.tokens, self.trained, self.places = array("I"), array("I"), array("d")
        with open(self.path, "w", encoding="utf-8") as mine, open(other.path, "a", encoding="utf-8") as theirs:
            for line, tokens, trained, stands in rows:
                (theirs if stands == place else mine).write(line + "\n")
                (other if stands == place else self)._count(tokens, trained, stands)

    def repeat_identity(self, times: int) -> None:
        """Append the identity samples, which come first in the file, until each is there `times` times."""
        with open(self.path, encoding="utf-8") as file:
            samples = list(itertools.takewhile(lambda line: line["source"] == identity.SOURCE, map(json.loads, file)))
        with open(self.path, "a", encoding="utf-8") as file:
            for time_ in range(2, times + 1):
                for index, sample in enumerate(samples):
                    file.write(json.dumps({**sample, "id": f"{sample['id']}~{time_}"}, ensure_ascii=False) + "\n")
                    self._count(self.tokens[index], self.trained[index], self.places[index])

    def _count(self, tokens: int, trained: int, place: float) -> None:
        self.tokens.append(tokens)
        self.trained.append(trained)
        self.places.append(place)


def check_not_empty(train: Part, val: Part, accounts: dict[str, Account]) -> None:
    """Raises RecipeError, with the reason for most of the drops, where there is no sample."""
    if train.tokens or val.tokens:
        return
    drops = sum((account.dropped_conversations for account in accounts.values()), Counter())
    read = sum(account.conversations for account in accounts.values())
    reason, count = drops.most_common(1)[0] if drops else ("the sources are empty", 0)
    raise RecipeError(
        f"nothing is left to train on: of {read:,} conversations {count:,} were dropped because of {reason}; "
        "give other sources, or a larger corpus.max_length"
    )


def even_out(train: Part, val: Part, val_fraction: float) -> None:
    """Chance may leave a side of a small corpus empty: there is something to train on, and something held out if there
    are two conversations and a share is asked for."""
    if not train.tokens:
        val.move_to(train, max(val.places))
    if not val.tokens and val_fraction > 0 and len(set(train.places)) > 1:
        train.move_to(val, min(train.places))


def results_of(train: Part, val: Part, preparation: Preparation, config: Config) -> dict[str, Any]:
    """What the manifest records and the report shows."""
    parts = {"train": train, "val": val}
    tokens = [*train.tokens, *val.tokens]
    name = identity.SOURCE
    return {
        "samples": {name: len(part.tokens) for name, part in parts.items()},
        "tokens": {name: sum(part.tokens) for name, part in parts.items()},
        "trained_tokens": {name: sum(part.trained) for name, part in parts.items()},
        "identity": preparation.accounts[name].kept_conversations if config.corpus.identity_name else 0,
        "sources": {source: account.as_dict() for source, account in preparation.accounts.items()},
        "rejected": [
            {"source": item.source, "offset": item.offset, "reason": item.reason, "detail": item.detail}
            for item in preparation.rejected[: overview.SHOWN_REJECTED]
        ],
        "lengths": overview.lengths(tokens),
        "histogram": overview.histogram(tokens, config.corpus.max_length),
    }


def show_samples(config: Config, count: int, colour: bool) -> Iterator[str]:
    """`count` samples from all over the training part, as rendered, what is trained on marked."""
    file = Path(config.corpus.path) / "train.jsonl"
    if not file.is_file():
        raise UsageError(f"no prepared corpus at {config.corpus.path}: name sources to prepare one")
    with open(file, encoding="utf-8") as lines:
        total = sum(1 for _ in lines)
        lines.seek(0)
        for line in itertools.islice(lines, 0, None, max(1, total // count)):
            sample = json.loads(line)
            pieces = templates.render(config.corpus.template, [Message(**message) for message in sample["messages"]])
            yield f"--- {overview.printable(sample['id'])}\n{overview.marked(pieces, colour)}\n"
            if (count := count - 1) == 0:
                return


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
        f"{folder}/report.md says what was dropped and why"
    )


def main(argv: list[str] | None = None) -> int:
    parser = console.parser(
        STAGE, __doc__ or "", "python -m recipe.corpus --source raw.json --tokenizer models/base --output data/mine"
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    flags = {"corpus.sources": args.source, "corpus.path": args.output, "base.path": args.tokenizer}
    config = console.load_config(args, flags)
    if args.show is not None and args.show < 1:
        raise UsageError(f"--show {args.show}: expected 1 or more")
    if args.show and args.json:
        raise UsageError("--show prints text and --json one JSON object: give one of them")
    only_show = bool(args.show) and not config.corpus.sources and not config.corpus.identity_name
    if not only_show:
        settings, inputs = identify(config)
        if args.dry_run:
            is_done = provenance.done(Path(config.corpus.path), STAGE, settings, inputs) is not None
            text = f"{config.corpus.path} is prepared already" if is_done else f"would write {config.corpus.path}"
            console.show({"done": is_done, "inputs": inputs, "config": settings}, text, args.json)
            return 0
        manifest = run(config)
        console.show(manifest, summary(manifest["results"], Path(config.corpus.path)), args.json)
    if args.show:
        for text in show_samples(config, args.show, sys.stdout.isatty()):
            print(text)
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", nargs="+", metavar="FILE", help="raw conversation files (corpus.sources)")
    parser.add_argument("--output", metavar="DIR", help="where the prepared corpus goes (corpus.path)")
    parser.add_argument("--tokenizer", metavar="DIR", help="the converted base, for its tokenizer (base.path)")
    parser.add_argument("--show", type=int, metavar="N", help="print N samples, what is trained on coloured")


if __name__ == "__main__":
    sys.exit(console.entry(main))

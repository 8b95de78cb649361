"""Finished shards to train.jsonl and val.jsonl: duplicates out, validation split, sources repeated by their weights.

The first pass reads the shards' indexes and decides what becomes of every conversation. The second copies each sample
once, to the file it belongs to; only repeated samples are read again.
"""

import io
import itertools
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from recipe.conversations import identity
from recipe.conversations.cleaning.accounting import Account, Drop
from recipe.conversations.cleaning.duplicates import SIGNATURE, near_duplicates
from recipe.conversations.pipeline import shards, stats
from recipe.conversations.pipeline.resolve import Plan
from recipe.conversations.pipeline.shards import Row, ShardIndex
from recipe.conversations.pipeline.split import draw
from recipe.conversations.readers.json_stream import Rejected
from recipe.core.config import Corpus
from recipe.core.errors import RecipeError
from recipe.core.text import printable, say

SHOWN_REJECTED = 20
DROPPED = -1  # in `Selection.number`
REMEDIES = {
    Drop.ODD_ROLE: "map them in the [[corpus.source]] table, as in roles = { bot = 'assistant' }",
    Drop.BLANK: "name the field of the text in the [[corpus.source]] table, as in fields = { content = 'text' }",
    Drop.ALL_OVER_LONG: "raise corpus.max_length, or set corpus.over_long to truncate",
    Drop.WRONG_ORDER: "set corpus.repair_roles to true",
    Drop.LANGUAGE: "change corpus.languages_keep or corpus.languages_skip",
    Drop.BLOCKED_WORD: "change corpus.blocked_words",
    Drop.REPEATED_DIGITS: "change corpus.repeated_digits",
    Drop.CONTAMINATED: "change corpus.decontaminate",
    Drop.SAMPLED_OUT: "raise the share of the source",
    Drop.UNTRAINED: "give sources with answers that are not marked as untrained",
    Drop.UNKNOWN_FORMAT: "name its format or its fields in the [[corpus.source]] table; --inspect shows the file",
}


@dataclass
class Selection:
    """What becomes of every conversation, in the order of the shards; 28 bytes each.

    `number`: DROPPED, 1, or n for the n-th conversation with the same id. The account of every source, the first
    rejected records and the number of repeated ids are those of the whole corpus.
    """

    number: array = field(default_factory=lambda: array("q"))
    position: array = field(default_factory=lambda: array("d"))
    tokens: array = field(default_factory=lambda: array("Q"))
    source: array = field(default_factory=lambda: array("I"))  # an index of `sources`
    sources: list[str] = field(default_factory=list)
    shards: list[tuple[int, int]] = field(default_factory=list)  # (source, conversations) of each
    accounts: defaultdict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    rejected: int = 0
    shown: list[Rejected] = field(default_factory=list)  # the first of them
    repeated_ids: int = 0

    def kept(self) -> Iterator[int]:
        """Indices of the conversations that are kept."""
        return (index for index, number in enumerate(self.number) if number != DROPPED)


class SplitFile:
    """train.jsonl or val.jsonl while it is written, with its samples' numbers in memory (16 bytes a sample)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens, self.trained = array("I"), array("I")
        self.turns, self.source = array("I"), array("I")

    def __enter__(self) -> "SplitFile":
        self._file = open(self.path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, text: bytes, numbers: tuple[int, int, int, int]) -> None:
        """Append a sample: its line without the id, its tokens, trained tokens and turns, and its source."""
        self._file.write(b'{"id": %b, %b' % (json.dumps(name, ensure_ascii=False).encode(), text))
        for column, value in zip((self.tokens, self.trained, self.turns, self.source), numbers, strict=True):
            column.append(value)

    def tokens_of(self, source: int) -> int:
        """All tokens of a source's samples."""
        return sum(itertools.compress(self.tokens, (number == source for number in self.source)))


def write_corpus(plan: Plan, folder: Path, work: Path, count: int, tokenizer: Any) -> dict[str, Any]:
    """The `count` finished shards in `work` as train.jsonl, val.jsonl and rejected.jsonl in `folder`.

    Returns what the manifest records and the reports show. Raises NothingLeftError where no sample is left.
    Memory: about 200 bytes a conversation.
    """
    corpus = plan.corpus
    with (
        open(folder / "rejected.jsonl", "w", encoding="utf-8") as rejects,
        open(folder / "changed.jsonl", "wb") as changes,
    ):
        selection = select(corpus, work, count, rejects, changes)
    _report_oddities(selection)
    train, val = SplitFile(folder / "train.jsonl"), SplitFile(folder / "val.jsonl")
    if not any(True for _ in selection.kept()):
        message = nothing_left(selection.accounts.values())
        raise NothingLeftError(message, summarize(corpus, selection, train, val, prefix=0))
    boundary = split_boundary((selection.position[index] for index in selection.kept()), corpus.val_fraction)
    repeats = repetitions(plan, selection, boundary)
    with train, val:
        for copy in range(1, math.ceil(max(repeats.values(), default=1)) + 1):
            shares = [repeats.get(source, 1.0) - (copy - 1) for source in range(len(selection.sources))]
            copy_samples(selection, work, train, val if copy == 1 else None, boundary, copy, shares, corpus.seed)
    prefix = stats.common_prefix(train.path, corpus.template, tokenizer)
    return summarize(corpus, selection, train, val, prefix)


def select(corpus: Corpus, work: Path, count: int, rejects: IO[str], changes: IO[bytes]) -> Selection:
    """What becomes of every conversation. Of those with the same text, or a similar one, the first is kept.

    Rejected records and changed turns are copied to `rejects` and `changes`.
    """
    similar = _similar(work, count, corpus.near_threshold) if corpus.duplicates == "near" else itertools.repeat(False)
    exact = corpus.duplicates != "keep"
    out, fingerprints, names = Selection(), set[bytes](), _Names()
    for number in range(count):
        index = _read_index(work, number)
        _count_source(out, index, rejects)
        changes.write(shards.read(work, number, "changes", index))
        for row, is_similar in zip(index.rows, similar, strict=False):
            content = bytes.fromhex(row.fingerprint)
            repeated = exact and content in fingerprints
            if repeated or is_similar:
                reason = Drop.DUPLICATE if repeated else Drop.NEAR_DUPLICATE
                out.accounts[index.source].take_back(reason, Drop.IN_DUPLICATE, row.turns, row.language)
                out.number.append(DROPPED)
            else:
                fingerprints.add(content)
                out.number.append(names.add(row.id))
                out.repeated_ids += out.number[-1] > 1
            out.position.append(row.position)
            out.tokens.append(sum(sample[1] for sample in row.samples))
            out.source.append(out.shards[-1][0])
    return out


class _Names:
    """Ids seen so far, by hash; a repeated one gets the next free number, so that every conversation can be found."""

    def __init__(self) -> None:
        self._seen = set[int]()
        self._last = dict[int, int]()  # of an id that was repeated, the last number

    def add(self, name: str) -> int:
        """1 for a new id, else the number with which `number_id` makes a new one of it."""
        key = hash(name)
        number = 1
        if key in self._seen:
            number = self._last.get(key, 1) + 1
            while hash(number_id(name, number)) in self._seen:
                number += 1
            self._last[key] = number
        self._seen.add(hash(number_id(name, number)))
        return number


def number_id(name: str, number: int) -> str:
    """The id of the `number`-th conversation with this id."""
    return name if number == 1 else f"{name}+{number}"


def _sample_id(name: str, index: int, count: int) -> str:
    """The id of a conversation's sample, as UTF-8 can hold it."""
    return (name if count == 1 else f"{name}#{index}").encode("utf-8", "replace").decode()


def _read_index(work: Path, number: int) -> ShardIndex:
    index = shards.read_index(work, number)
    if index is None:
        raise shards.DamagedError(work, number)
    return index


def _count_source(out: Selection, index: ShardIndex, rejects: IO[str]) -> None:
    out.accounts[index.source].add(index.account)
    if index.source not in out.sources:
        out.sources.append(index.source)
    out.shards.append((out.sources.index(index.source), len(index.rows)))
    _write_rejected(rejects, index.rejected)
    out.rejected += len(index.rejected)
    out.shown += index.rejected[: SHOWN_REJECTED - len(out.shown)]


def _similar(work: Path, count: int, threshold: float) -> Iterator[bool]:
    paths = [shards.path_of(work, number, "signatures") for number in range(count)]
    conversations = sum(path.stat().st_size for path in paths) // SIGNATURE.itemsize
    signatures = (np.frombuffer(shards.read(work, number, "signatures"), SIGNATURE) for number in range(count))
    return map(bool, near_duplicates(signatures, conversations, threshold, work))


def _write_rejected(file: IO[str], rejected: list[Rejected]) -> None:
    for item in rejected:
        values = {
            "source": item.source,
            "offset": item.offset,
            "bytes": item.size,
            "reason": item.reason.name.lower(),
            "detail": item.detail,
            "text": item.text,
        }
        file.write(json.dumps(values) + "\n")


def _report_oddities(selection: Selection) -> None:
    for item in selection.shown:
        say(f"{item.source}, byte {item.offset:,}: {item.reason}: {printable(item.detail)}")
    if selection.rejected > len(selection.shown):
        say(f"and {selection.rejected - len(selection.shown):,} more rejected records: see rejected.jsonl")
    if unranked := sum(account.dropped_turns[Drop.UNRANKED] for account in selection.accounts.values()):
        say(f"of several answers the first was taken, {unranked:,} others were not: answers = 'all' takes them all")
    unfilled = sum((account.placeholders for account in selection.accounts.values()), Counter[str]())
    if unfilled:
        names = ", ".join(f"{{{{{name}}}}} in {count:,}" for name, count in unfilled.most_common(5))
        name = unfilled.most_common(1)[0][0]
        rule = rf"corpus.replace = ['\{{\{{{name}\}}\}} => TEXT']"
        say(f"turns contain placeholders ({names}): fill them with rules, as in {rule}")
    if selection.repeated_ids:
        say(f"{selection.repeated_ids:,} conversations had the id of an earlier one and were renamed, as c1 to c1+2")


class NothingLeftError(RecipeError):
    """No conversation is kept. `results` are those of an empty corpus: they account for every drop."""

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__(message)
        self.results = results


def nothing_left(accounts: Iterable[Account]) -> str:
    """Why no conversation is kept, and what to change: one sentence."""
    total = Account()
    for account in accounts:
        total.add(account)
    if not total.conversations:
        return "nothing is left to train on: the sources are empty; give other sources"
    ((reason, count),) = total.dropped_conversations.most_common(1)
    found = f"of {total.conversations:,} conversations {count:,} were dropped ({reason})"
    if reason == Drop.NO_PAIR and total.dropped_turns:
        ((reason, count),) = total.dropped_turns.most_common(1)
        found += f", and of {total.turns:,} turns {count:,} ({reason})"
    if reason == Drop.ODD_ROLE:
        names = ", ".join(repr(printable(name)) for name, _ in total.unknown_roles.most_common(3))
        found += f"; the most frequent ones are {names}"
    return f"nothing is left to train on: {found}; {REMEDIES.get(reason, 'give other sources')}"


def split_boundary(positions: Iterable[float], val_fraction: float) -> float:
    """The position below which conversations validate: `val_fraction`, but for corpora so small that chance leaves a
    side empty. Then the last position trains, or the first one validates where there are two and a share is asked."""
    ordered = sorted(set(positions))
    if ordered[-1] < val_fraction:
        return ordered[-1]
    if ordered[0] >= val_fraction > 0 and len(ordered) > 1:
        return ordered[1]
    return val_fraction


def repetitions(plan: Plan, selection: Selection, boundary: float) -> dict[int, float]:
    """Source -> times that its samples are in train.jsonl, where that is not once.

    Weighted sources get token shares in proportion to their weights. Nothing is dropped for that: the source with the
    most tokens for its weight is there once, the others are repeated.
    """
    tokens = Counter[int]()
    for index in selection.kept():
        if selection.position[index] >= boundary:
            tokens[selection.source[index]] += selection.tokens[index]
    numbers = {name: number for number, name in enumerate(selection.sources)}
    out = {numbers[identity.SOURCE]: float(plan.corpus.identity_repeat)} if identity.SOURCE in numbers else {}
    weights = {numbers[source.name]: source.settings.weight for source in plan.sources if source.name in numbers}
    weights = {number: weight for number, weight in weights.items() if weight and tokens[number]}
    most = max((tokens[number] / weight for number, weight in weights.items()), default=0)
    return out | {number: most * weight / tokens[number] for number, weight in weights.items()}


def copy_samples(
    selection: Selection,
    work: Path,
    train: SplitFile,
    val: SplitFile | None,
    boundary: float,
    copy: int,
    shares: list[float],
    seed: int,
) -> None:
    """Append every kept conversation's samples to the file it belongs to; the `copy`-th time, counted from 1.

    From the second time on there is no `val`, and `shares` (by source) of the samples are drawn.
    """
    first = 0  # index of the shard's first conversation
    for number, (source, count) in enumerate(selection.shards):
        share = shares[source] if copy > 1 else 1.0
        if share > 0:
            rows = _read_samples(work, number)
            for index, (row, texts) in enumerate(rows, start=first):
                file = val if selection.position[index] < boundary else train
                if file is None or selection.number[index] == DROPPED:
                    continue
                name = number_id(row.id, selection.number[index])
                for part, (text, (_, tokens, trained, turns)) in enumerate(zip(texts, row.samples, strict=True)):
                    sample = _sample_id(name, part, len(texts))
                    if share >= 1 or draw(sample, str(copy), seed) < share:
                        file.add(sample if copy == 1 else f"{sample}~{copy}", text, (tokens, trained, turns, source))
        first += count


def _read_samples(work: Path, number: int) -> Iterator[tuple[Row, list[bytes]]]:
    """The rows of a shard, each with the lines of its samples."""
    index = _read_index(work, number)
    lines = io.BytesIO(shards.read(work, number, "samples", index))
    for row in index.rows:
        yield row, [lines.read(sample[0]) for sample in row.samples]


def summarize(corpus: Corpus, selection: Selection, train: SplitFile, val: SplitFile, prefix: int) -> dict[str, Any]:
    """What the manifest records and the reports show: plain JSON values."""
    files = {"train": train, "val": val}
    tokens = [*train.tokens, *val.tokens]
    accounts = selection.accounts
    return {
        "samples": {name: len(file.tokens) for name, file in files.items()},
        "tokens": {name: sum(file.tokens) for name, file in files.items()},
        "trained_tokens": {name: sum(file.trained) for name, file in files.items()},
        "identity": accounts[identity.SOURCE].kept_conversations if identity.SOURCE in accounts else 0,
        "sources": {source: accounts[source].as_dict() for source in selection.sources},
        "mixture": {source: train.tokens_of(number) for number, source in enumerate(selection.sources)},
        "rejected": selection.rejected,
        "first_rejected": [
            {"source": item.source, "offset": item.offset, "reason": item.reason, "detail": item.detail}
            for item in selection.shown
        ],
        "repeated_ids": selection.repeated_ids,
        "lengths": stats.lengths(tokens),
        "histogram": stats.histogram(tokens, corpus.max_length),
        "turns": stats.turns([*train.turns, *val.turns]),
        "shared_prefix": prefix,
        "packs": {str(budget): stats.packs(train.tokens, budget, prefix) for budget in stats.BUDGETS},
    }

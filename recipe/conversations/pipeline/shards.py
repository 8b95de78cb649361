"""A corpus in shards of a few megabytes, each prepared by any free worker and written to files of its own.

A shard's content follows from the sources alone, never from the number of workers. So the shards in order are the same
corpus on every machine, and a finished shard stays finished when the work is interrupted.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from recipe.conversations.cleaning.accounting import Account, Change, Drop, account
from recipe.conversations.cleaning.filters import Filters
from recipe.conversations.formats import detect
from recipe.conversations.messages import Conversation
from recipe.conversations.pipeline import cluster, workers
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.prepare import Preparation, Prepared
from recipe.conversations.pipeline.resolve import RawSource
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.config import Corpus
from recipe.core.errors import RecipeError
from recipe.core.files import sha256

SHARD_BYTES, SHARD_RECORDS = 2 << 20, 2000
Kind = Literal["index", "samples", "signatures", "changes"]
AHEAD = 2  # shards read ahead per worker; this bounds memory


class KilledError(RecipeError):
    """A worker died while it prepared a shard. The finished shards are whole."""


class DamagedError(RecipeError):
    """A finished shard is gone or altered. The others are whole."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(f"shard {number} in {folder} is missing or damaged: run the same command to make it again")


@dataclass(frozen=True)
class ShardConfig:
    """Settings shared by all workers."""

    counter: TokenCounter
    corpus: Corpus
    prompts: tuple[str, ...] = ()  # evaluation prompts; conversations that contain one are dropped


@dataclass(frozen=True)
class Shard:
    """Consecutive records of one source: at most 2 MiB or 2,000 of them."""

    number: int
    source: RawSource
    first: int  # the number of its first record in the source
    end: int = 0  # bytes of the source up to the shard's end; 0 where the source is not counted in bytes
    records: list[Record | Rejected | Conversation] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What the index holds of a kept conversation: all but its text."""

    id: str
    position: float
    fingerprint: str
    language: str
    turns: int
    samples: list[tuple[int, int, int, int]]  # bytes in the .samples file, tokens, trained tokens, turns


@dataclass(frozen=True)
class ShardIndex:
    """Counts and offsets of a finished shard. Beside it lie its samples, JSON Lines without their `{"id": ..., `, its
    changed turns, and its MinHash signatures where near-duplicates are dropped."""

    source: str
    rows: list[Row]
    account: Account
    rejected: list[Rejected]
    sha256: dict[Kind, str]  # of the files beside it


def divide(sources: Iterable[RawSource], generated: Sequence[Conversation] = ()) -> Iterator[Shard]:
    """All records as shards, those of `generated` first."""
    shard = Shard(0, RawSource(generated[0].source if generated else "", Path()), 0, records=list(generated))
    if shard.records:
        yield shard
    for source in sources:
        shard, size, end = Shard(shard.number + bool(shard.records), source, 0), 0, 0
        for number, record in enumerate(detect.raw_records(source.path, source.name)):
            if shard.records and (size >= SHARD_BYTES or len(shard.records) >= SHARD_RECORDS):
                yield replace(shard, end=end)
                shard, size = Shard(shard.number + 1, source, number), 0
            shard.records.append(record)
            size += record.size
            end = record.offset + record.size if record.size else 0
        if shard.records:
            yield replace(shard, end=end)


def prepare(
    shards: Iterable[Shard], folder: Path, config: ShardConfig, processes: int, report: Callable[[Shard, int], object]
) -> Iterator[int]:
    """Prepare every shard into `folder` except those that are finished there; yields their numbers in order.

    `report` is called with each finished shard and the number of conversations it held. Raises KilledError where a
    worker dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = iter(shards)
    if config.corpus.cluster:
        with cluster.open_cluster(config.corpus.cluster, config, folder) as (submit, threads):
            for shard, count in _in_order(lambda shard: submit(_finish_there, shard), shards, AHEAD * threads):
                report(shard, count)
                yield shard.number
        return
    first = list(itertools.islice(shards, 2))
    shards = itertools.chain(first, shards)
    if processes == 1 or len(first) < 2:
        worker = _Worker(config, folder)
        for shard in shards:
            report(shard, worker.finish(shard))
            yield shard.number
        return
    with ProcessPoolExecutor(processes, workers.context(), _begin, (config, folder)) as pool:
        try:
            for shard, count in _in_order(lambda shard: pool.submit(_finish, shard), shards, AHEAD * processes):
                report(shard, count)
                yield shard.number
        except BrokenProcessPool:
            raise KilledError(
                "a worker process was killed, probably for lack of memory; run the same command again to resume after "
                "the last finished shard, with --set corpus.processes=1 to need a fraction of the memory"
            ) from None
        except BaseException:
            workers.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    submit: Callable[[Shard], Future[int]], shards: Iterable[Shard], ahead: int
) -> Iterator[tuple[Shard, int]]:
    """(shard without its records, conversations in it) in order, at most `ahead` of them under way."""
    waiting: deque[tuple[Shard, Future[int]]] = deque()
    for shard in shards:
        with workers.defer_signals():  # this may start a worker
            waiting.append((replace(shard, records=[]), submit(shard)))
        if len(waiting) >= ahead:
            done, count = waiting.popleft()
            yield done, count.result()
    for done, count in waiting:
        yield done, count.result()


class _Worker:
    def __init__(self, config: ShardConfig, folder: Path) -> None:
        self.folder = folder
        self.counter = config.counter  # the words it has cached serve the next shards too
        self.filters = Filters(config.corpus, config.prompts)
        self.near = config.corpus.duplicates == "near"

    def finish(self, shard: Shard) -> int:
        """Prepare a shard unless it is finished and whole; the number of conversations that came in."""
        index = read_index(self.folder, shard.number)
        if index is None or not _is_intact(self.folder, shard.number, index):
            index = self._prepare(shard)
        return index.account.conversations

    def _prepare(self, shard: Shard) -> ShardIndex:
        preparation = Preparation(self.counter, self.filters, shard.source.settings)
        rows, samples, signatures = [], list[bytes](), []
        for prepared in filter(None, map(preparation.take, _conversations(shard))):
            lines = list(_lines(prepared))
            rows.append(_row(prepared, list(map(len, lines))))
            samples += lines
            signatures.append(prepared.signature)
        hashes: dict[Kind, str] = {}
        hashes["samples"] = _write(path_of(self.folder, shard.number, "samples"), b"".join(samples))
        changes = "".join(map(_changed_line, itertools.repeat(shard.source.name), preparation.changed))
        hashes["changes"] = _write(path_of(self.folder, shard.number, "changes"), changes.encode())
        if self.near:
            hashes["signatures"] = _write(path_of(self.folder, shard.number, "signatures"), b"".join(signatures))
        name = shard.source.name
        index = ShardIndex(name, rows, preparation.accounts[name], preparation.rejected, hashes)
        _write_index(self.folder, shard.number, index)
        return index


_worker: _Worker  # of this process


def _begin(config: ShardConfig, folder: Path) -> None:
    global _worker
    workers.follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker, since there are as many workers as cores
    _worker = _Worker(config, folder)


def _finish(shard: Shard) -> int:
    return _worker.finish(shard)


def _finish_there(config: ShardConfig, folder: Path, shard: Shard) -> int:
    """`_finish` on a cluster, where one worker may serve several corpora."""
    worker: _Worker = cluster.own(config, lambda: _Worker(config, folder))
    return worker.finish(shard)


def _conversations(shard: Shard) -> Iterator[Conversation | Rejected]:
    source, format = shard.source, shard.source.format
    for number, record in enumerate(shard.records, start=shard.first):
        if isinstance(record, Conversation):
            yield record
        else:
            yield from detect.conversations(
                record, number, source.name, format, source.settings.answers, source.settings.roles
            )


def _lines(prepared: Prepared) -> Iterator[bytes]:
    for sample in prepared.samples:
        messages = [
            {"role": message.role, "content": message.content} | ({} if message.trained else {"trained": False})
            for message in sample.messages
        ]
        line = json.dumps({"source": prepared.conversation.source, "messages": messages}, ensure_ascii=False)
        yield line.removeprefix("{").encode() + b"\n"


def _changed_line(source: str, change: tuple[str, int, list[Change]]) -> str:
    name, turn, changes = change
    return (
        json.dumps({"source": source, "id": name, "turn": turn, "changes": [item.name.lower() for item in changes]})
        + "\n"
    )


def _row(prepared: Prepared, sizes: Sequence[int]) -> Row:
    samples = [
        (size, sample.tokens, sample.trained, len(sample.messages))
        for size, sample in zip(sizes, prepared.samples, strict=True)
    ]
    content = prepared.fingerprint[:16].hex()
    return Row(prepared.conversation.id, prepared.position, content, prepared.language, prepared.turns, samples)


def path_of(folder: Path, number: int, kind: Kind) -> Path:
    """The path of a shard's index, samples or signatures."""
    return folder / f"{number:06}.{kind}"


def sync(folder: Path, number: int) -> None:
    """Have a finished shard written to the disk. Not done by the worker, which prepares the next one meanwhile."""
    for kind in get_args(Kind):
        with contextlib.suppress(FileNotFoundError), open(path_of(folder, number, kind), "rb") as file:
            os.fsync(file.fileno())


def read(folder: Path, number: int, kind: Kind, index: ShardIndex | None = None) -> bytes:
    """A file of a finished shard; `index`: the shard's, if it was read. Raises DamagedError if it is another file."""
    index = index or read_index(folder, number)
    with contextlib.suppress(FileNotFoundError):
        data = path_of(folder, number, kind).read_bytes()
        if index and hashlib.sha256(data).hexdigest() == index.sha256[kind]:
            return data
    raise DamagedError(folder, number)


def _write(path: Path, data: bytes) -> str:
    """Write a file and return its sha256, by which the damage of a power cut is found; the shard is prepared again."""
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _write_index(folder: Path, number: int, index: ShardIndex) -> None:
    """Write the index whole and last: a shard that has one is finished. It starts with the sha256 of the rest."""
    values = {
        "source": index.source,
        "rows": [list(vars(row).values()) for row in index.rows],
        "account": index.account.as_dict(),
        "rejected": [{**asdict(item), "reason": item.reason.name} for item in index.rejected],
        "sha256": index.sha256,
    }
    body = json.dumps(values).encode()
    path = path_of(folder, number, "index")
    partial = path.with_suffix(".partial")
    _write(partial, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    os.replace(partial, path)


def read_index(folder: Path, number: int) -> ShardIndex | None:
    """The index of a finished shard; None where there is none or it is damaged."""
    try:
        expected, _, body = path_of(folder, number, "index").read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != expected:
        return None
    values = json.loads(body)
    rows = [Row(*row) for row in values["rows"]]
    rejected = [Rejected(**{**item, "reason": Drop[item["reason"]]}) for item in values["rejected"]]
    return ShardIndex(values["source"], rows, account(values["account"]), rejected, values["sha256"])


def _is_intact(folder: Path, number: int, index: ShardIndex) -> bool:
    """Whether the files beside the index are those that the shard was finished with."""
    try:
        return all(sha256(path_of(folder, number, kind)) == found for kind, found in index.sha256.items())
    except OSError:
        return False

"""The validation loss of the tuned model in every format that it leaves in: what is shipped is what was judged."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file, digest
from recipe.core.run import Run
from recipe.core.text import say
from recipe.evaluation.intervals import ratio
from recipe.evaluation.scoring import Losses, Packs, plain
from recipe.model.exports import Export
from recipe.model.load import default_device
from recipe.model.stream import stream_token_nll

MOST_TOKENS = 1 << 16  # the hidden states of all of them are in memory: 1 GB in fp32 at a width of 4,096
WORSE = 0.01  # nats per token: a format whose loss is within this of the model as trained passes for equal


def choose_samples(names: Sequence[str], lengths: Sequence[int], most: int = MOST_TOKENS) -> list[int]:
    """The samples to judge, in order: all, or whole ones drawn by the hash of their names up to `most` tokens."""
    drawn = sorted(range(len(names)), key=lambda number: hashlib.sha256(names[number].encode()).digest())
    totals = itertools.accumulate(lengths[number] for number in drawn)
    kept = [number for number, total in zip(drawn, totals, strict=True) if total <= most]
    return sorted(kept or drawn[:1])


def judge(
    run: Run,
    exports: Iterable[Export],
    data: Packs,
    conversations: Sequence[str],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Score each export and write exports.json after each, so that an interrupted evaluation resumes.

    `data`: the samples in packs; `conversations`: the conversation of each sample.
    Rows of an earlier file are kept where their hashes and `provenance` are the same. The first export is what the
    others are compared with. Returns the content of the file.
    """
    earlier = _earlier(run, provenance)
    result: dict[str, Any] = {"provenance": dict(provenance), "models": []}
    for export in exports:
        key = digest({"name": export.name, **export.identity})
        row = earlier.get(key)
        if row is None:
            row = {"name": export.name, "key": key, "bytes": export.bytes, "alone": export.deltas is None}
            row |= dict(zip(("nats", "tokens"), _by_conversation(score(export, data), conversations), strict=True))
        else:
            say(f"{export.name}: judged already")
        result["models"].append(row | _compare(result["models"][0] if result["models"] else row, row))
        result |= {"conversations": len(row["tokens"]), "recommended": recommend(result["models"])}
        with atomic_file(run.exports) as file:
            json.dump(result, file, indent=1, sort_keys=True)
            file.write("\n")
        run.record(run.exports.name)
    return result


def score(export: Export, data: Packs) -> Losses:
    """The nats of every trained token of every sample in `data`, one decoder layer in memory at a time."""
    out: Losses = [np.empty(0, np.float32)] * sum(map(len, data.packs))
    packs = [data[number] for number in range(len(data.packs))]
    found = stream_token_nll(export.config, export.tensors, packs, default_device(), export.deltas, export.name)
    for numbers, losses in zip(data.packs, found, strict=True):
        for number, values in zip(numbers, losses, strict=True):
            out[number] = np.array(values, np.float32)
    return out


def recommend(models: Sequence[Mapping[str, Any]]) -> str:
    """The smallest format whose loss is, by its whole interval, less than `WORSE` above the model as trained's.

    Empty where no file is. An adapter does not count: it needs the base beside it.
    """
    files = [row for row in models if row["alone"] and row["bytes"] is not None]
    fits = [row for row in files if row["difference"][2] < WORSE]
    return min(fits, key=lambda row: row["bytes"])["name"] if fits else ""


def _earlier(run: Run, provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Key -> row of the exports.json of the same run, samples and code; empty if it is absent or was altered."""
    if not run.exports.is_file():
        return {}
    try:
        run.check_recorded(run.exports.name)
        result = json.loads(run.exports.read_text(encoding="utf-8"))
        same = result["provenance"] == dict(provenance)
        return {row["key"]: row for row in result["models"]} if same else {}
    except (ValueError, KeyError, TypeError, RecipeError):
        return {}


def _by_conversation(losses: Losses, conversations: Sequence[str]) -> Iterator[list[Any]]:
    """Summed nats of each conversation, then its number of trained tokens."""
    nats, tokens = dict.fromkeys(conversations, 0.0), dict.fromkeys(conversations, 0)
    for name, values in zip(conversations, losses, strict=True):
        nats[name] += float(values.sum(dtype=np.float64))
        tokens[name] += len(values)
    yield list(nats.values())
    yield list(tokens.values())


def _compare(judged: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, list[float]]:
    """[value, low, high] of the row's loss and of its difference to the model as trained, paired by conversation."""
    paired = plain(ratio(np.array(judged["nats"]), np.array(row["nats"]), np.array(row["tokens"], dtype=float)))
    return {"loss": paired["tuned"], "difference": paired["difference"]}

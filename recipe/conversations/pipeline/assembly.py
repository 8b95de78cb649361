"""Prepared parts to a corpus: the two files, evened out and mixed as a config asks, and what a manifest records."""

from collections import Counter
from pathlib import Path
from typing import Any

from recipe.conversations import identity
from recipe.conversations.cleaning.accounting import Account
from recipe.conversations.pipeline import resolve, stats, write
from recipe.conversations.pipeline.write import Assembly, Side
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.text import printable, say


def assemble(config: Config, folder: Path, work: Path, count: int) -> dict[str, Any]:
    """The finished parts as train.jsonl and val.jsonl; what the manifest records and the report shows."""
    corpus = config.corpus
    train, val = Side(folder / "train.jsonl"), Side(folder / "val.jsonl")
    near = corpus.near_threshold if corpus.duplicates == "near" else 0.0
    with train, val:
        found = write.assemble(work, count, train, val, corpus.val_fraction, corpus.duplicates != "keep", near)
    for item in found.shown:
        say(f"{item.source}, byte {item.offset:,}: {item.reason}: {printable(item.detail)}")
    if found.rejected > len(found.shown):
        say(f"and {found.rejected - len(found.shown):,} more rejected records: see rejected.jsonl")
    if found.repeated_ids:
        say(f"{found.repeated_ids:,} conversations had the id of an earlier one and were renamed, as c1 to c1+2")
    check_not_empty(train, val, found.accounts)
    even_out(train, val, corpus.val_fraction)
    train.repeat(times(config, train, found), corpus.seed)
    return results_of(train, val, found, config)


def check_not_empty(train: Side, val: Side, accounts: dict[str, Account]) -> None:
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


def even_out(train: Side, val: Side, val_fraction: float) -> None:
    """Chance may leave a side of a small corpus empty: there is something to train on, and something held out if there
    are two conversations and a share is asked for."""
    if not train.tokens:
        val.move_to(train, max(val.places))
    if not val.tokens and val_fraction > 0 and len(set(train.places)) > 1:
        train.move_to(val, min(train.places))


def times(config: Config, train: Side, found: Assembly) -> dict[int, float]:
    """How often each source's samples shall stand in the training part: nothing is dropped for a mixture, so of the
    weighted sources the one with most tokens for its weight stands there once."""
    numbers = {name: number for number, name in enumerate(found.sources)}
    out = {numbers[identity.SOURCE]: float(config.corpus.identity_repeat)} if identity.SOURCE in numbers else {}
    weights = resolve.shares(config, "mixture", most=1e6)
    tokens = {name: train.tokens_of(numbers[name]) for name in weights if name in numbers}
    most = max((tokens[name] / weights[name] for name in tokens), default=0)
    return out | {numbers[name]: most * weights[name] / tokens[name] for name in tokens if tokens[name]}


def results_of(train: Side, val: Side, found: Assembly, config: Config) -> dict[str, Any]:
    """What the manifest records and the report shows."""
    sides = {"train": train, "val": val}
    tokens = [*train.tokens, *val.tokens]
    name = identity.SOURCE
    return {
        "samples": {name: len(side.tokens) for name, side in sides.items()},
        "tokens": {name: sum(side.tokens) for name, side in sides.items()},
        "trained_tokens": {name: sum(side.trained) for name, side in sides.items()},
        "identity": found.accounts[name].kept_conversations if name in found.accounts else 0,
        "sources": {source: found.accounts[source].as_dict() for source in found.sources},
        "mixture": {source: train.tokens_of(number) for number, source in enumerate(found.sources)},
        "rejected": found.rejected,
        "first_rejected": [
            {"source": item.source, "offset": item.offset, "reason": item.reason, "detail": item.detail}
            for item in found.shown
        ],
        "repeated_ids": found.repeated_ids,
        "lengths": stats.lengths(tokens),
        "histogram": stats.histogram(tokens, config.corpus.max_length),
        "turns": stats.turns([*train.turns, *val.turns]),
        "packs": {str(budget): stats.packs(train.tokens, budget) for budget in stats.BUDGETS},
    }

"""Clean, filter and split one conversation at a time, and account for everything that came in."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from recipe.conversations.cleaning import duplicates
from recipe.conversations.cleaning.accounting import Account, Change, Drop
from recipe.conversations.cleaning.filters import Filters, language, placeholders
from recipe.conversations.cleaning.html import clean_turn
from recipe.conversations.cleaning.roles import fingerprint, in_turn
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.split import Sample, draw, position, split_conversation
from recipe.conversations.readers.json_stream import Rejected
from recipe.core.config import Source

KNOWN_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prepared:
    """A conversation that is kept, unless an earlier one turns out to be the same."""

    conversation: Conversation
    samples: list[Sample]
    turns: int  # of the conversation that are in the samples
    fingerprint: bytes  # equal for equal texts
    signature: bytes  # MinHash; empty where near-duplicates are kept
    language: str
    position: float  # in [0, 1), for the validation split


class Preparation:
    """Cleans, filters and splits conversations by the rules of `filters` and the settings of their source.

    A conversation has no influence on another. Every `take` adds to `accounts` (by source name), `rejected` and
    `changed`.
    """

    def __init__(self, counter: TokenCounter, filters: Filters, source: Source | None = None) -> None:
        self.counter, self.filters, self.source = counter, filters, source or Source()
        self.corpus = filters.corpus
        self.accounts: defaultdict[str, Account] = defaultdict(Account)
        self.rejected: list[Rejected] = []
        self.changed: list[tuple[str, int, list[Change]]] = []  # (id, turn from 0 on, changes by the cleaning)

    def take(self, item: Conversation | Rejected) -> Prepared | None:
        """The clean conversation and its samples; None where nothing of it is kept. Either way it is accounted for."""
        account = self.accounts[item.source]
        if isinstance(item, Rejected):
            account.came(turns=0)
            account.dropped_conversations[item.reason] += 1
            self.rejected.append(item)
            return None
        account.came(len(item.messages) + item.passed_over)
        account.dropped_turns[Drop.PASSED_OVER] += item.passed_over - item.unranked
        account.dropped_turns[Drop.UNRANKED] += item.unranked
        share = self.source.share
        if share < 1 and draw(item.id, item.source, self.corpus.seed) >= share:
            account.dropped(Drop.SAMPLED_OUT, len(item.messages))
            return None
        conversation = self._clean_up(item, account)
        return self._filter_and_split(conversation, account) if conversation else None

    def _clean_up(self, raw: Conversation, account: Account) -> Conversation | None:
        """The conversation with clean texts and alternating roles, at most `rounds` pairs long."""
        messages = [self._clean(raw, index, account) for index in range(len(raw.messages))]
        unknown = (message.role or "(no role)" for message in messages if message.role not in KNOWN_ROLES)
        account.count_names(account.unknown_roles, unknown)
        kept, dropped = in_turn(messages)
        if dropped and not self.corpus.repair_roles and raw.messages:
            account.dropped(Drop.WRONG_ORDER, len(raw.messages))
            return None
        account.dropped_turns += dropped
        if not kept:
            account.dropped_conversations[Drop.NO_PAIR if raw.messages else Drop.EMPTY] += 1
            return None
        last = 2 * self.corpus.rounds + (kept[0].role == "system")
        if self.corpus.rounds and len(kept) > last:
            account.dropped_turns[Drop.LATER_ROUND] += len(kept) - last
            kept = kept[:last]
        return replace(raw, messages=tuple(kept))

    def _clean(self, raw: Conversation, index: int, account: Account) -> Message:
        message = raw.messages[index]
        text, changes = clean_turn(message.content, message.role, self.corpus.html, self.source.html)
        text, more = self.filters.change(text)
        for change in (*changes, *more):
            account.changed_turns[change] += 1
        if changes:
            self.changed.append((raw.id, index, changes))
        if names := placeholders(text):
            account.count_names(account.placeholders, set(names))
        return message if text == message.content else replace(message, content=text)

    def _filter_and_split(self, conversation: Conversation, account: Account) -> Prepared | None:
        corpus, messages = self.corpus, conversation.messages
        spoken = language(messages)
        if reason := self.filters.reason(messages, spoken):
            account.dropped(reason, len(messages))
            return None
        truncate = corpus.over_long == "truncate"
        split = split_conversation(messages, self.counter, corpus.template, corpus.max_length, truncate)
        turns = len(messages) - 2 * (split.dropped + split.untrained)
        account.dropped_turns[Drop.OVER_LONG_PAIR] += 2 * split.dropped
        account.dropped_turns[Drop.UNTRAINED_PAIR] += 2 * split.untrained
        account.changed_turns[Change.TRUNCATED] += split.truncated
        if not split.samples:
            reason = Drop.UNTRAINED if split.untrained else Drop.ALL_OVER_LONG
            account.dropped(reason, turns, Drop.ORPHAN_SYSTEM)
            return None
        account.kept(turns)
        account.languages[spoken] += 1
        return self._prepared(conversation, split.samples, turns, spoken)

    def _prepared(self, conversation: Conversation, samples: Sequence[Sample], turns: int, spoken: str) -> Prepared:
        content = fingerprint(conversation.messages)
        near = self.corpus.duplicates == "near"
        return Prepared(
            conversation,
            list(samples),
            turns,
            content,
            duplicates.signature(conversation.messages) if near else b"",
            spoken,
            position(conversation, self.corpus.seed, content),
        )

"""From what a file holds to samples, one conversation at a time, with an account of everything that came in."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from recipe.conversations.cleaning import duplicates
from recipe.conversations.cleaning.accounting import Account, Change, Drop
from recipe.conversations.cleaning.filters import Filters, Rules, language
from recipe.conversations.cleaning.html import cleaned_text
from recipe.conversations.cleaning.roles import fingerprint, in_turn
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.split import Sample, drawn, position, split_conversation
from recipe.conversations.readers.json_stream import Rejected


@dataclass(frozen=True)
class Prepared:
    """A conversation that is kept, unless an earlier one turns out to be the same."""

    conversation: Conversation
    samples: list[Sample]
    turns: int  # of it that are in the samples
    mark: bytes  # equal for equal texts
    sketch: bytes  # similar for similar texts; empty where nobody asks
    language: str
    place: float  # in [0, 1), for the hold-out


@dataclass
class Preparation:
    """Cleans, filters and splits. No conversation has an influence on another."""

    counter: TokenCounter
    template: str
    max_length: int  # tokens of a sample
    rules: Rules = field(default_factory=Rules)
    seed: int = 0
    accounts: defaultdict[str, Account] = field(default_factory=lambda: defaultdict(Account))  # by source
    rejected: list[Rejected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._filters = Filters(self.rules)

    def take(self, item: Conversation | Rejected) -> Prepared | None:
        """The clean conversation and its samples; None where nothing of it is kept. Either way it is accounted for."""
        account = self.accounts[item.source]
        if isinstance(item, Rejected):
            account.came(turns=0)
            account.dropped_conversations[item.reason] += 1
            self.rejected.append(item)
            return None
        account.came(len(item.messages) + item.passed_over)
        account.dropped_turns[Drop.PASSED_OVER] += item.passed_over
        share = self.rules.sample.get(item.source, 1.0)
        if share < 1 and drawn(item.id, item.source, self.seed) >= share:
            account.dropped(Drop.SAMPLED_OUT, len(item.messages))
            return None
        conversation = self._fit(item, account)
        return self._cut(conversation, account) if conversation else None

    def _fit(self, raw: Conversation, account: Account) -> Conversation | None:
        messages = [self._clean(message, account) for message in raw.messages]
        kept, dropped = in_turn(messages)
        if dropped and not self.rules.repair_roles and raw.messages:
            account.dropped(Drop.WRONG_ORDER, len(raw.messages))
            return None
        account.dropped_turns += dropped
        if not kept:
            account.dropped_conversations[Drop.NO_PAIR if raw.messages else Drop.EMPTY] += 1
            return None
        last = 2 * self.rules.rounds + (kept[0].role == "system")
        if self.rules.rounds and len(kept) > last:
            account.dropped_turns[Drop.LATER_ROUND] += len(kept) - last
            kept = kept[:last]
        return replace(raw, messages=tuple(kept))

    def _clean(self, message: Message, account: Account) -> Message:
        text, changes = cleaned_text(message.content, self.rules.html)
        text, more = self._filters.change(text)
        for change in (*changes, *more):
            account.changed_turns[change] += 1
        return message if text == message.content else replace(message, content=text)

    def _cut(self, conversation: Conversation, account: Account) -> Prepared | None:
        messages = conversation.messages
        spoken = language(messages)
        if reason := self._filters.reason(messages, spoken):
            account.dropped(reason, len(messages))
            return None
        split = split_conversation(messages, self.counter, self.template, self.max_length, self.rules.truncate)
        turns = len(messages) - 2 * split.dropped
        account.dropped_turns[Drop.OVER_LONG_PAIR] += 2 * split.dropped
        account.changed_turns[Change.TRUNCATED] += split.truncated
        if not split.samples:
            account.dropped(Drop.ALL_OVER_LONG, turns, Drop.ORPHAN_SYSTEM)
            return None
        account.kept(turns)
        account.languages[spoken] += 1
        return self._prepared(conversation, split.samples, turns, spoken)

    def _prepared(self, conversation: Conversation, samples: Sequence[Sample], turns: int, spoken: str) -> Prepared:
        mark = fingerprint(conversation.messages)
        return Prepared(
            conversation,
            list(samples),
            turns,
            mark,
            duplicates.sketch(conversation.messages) if self.rules.near else b"",
            spoken,
            position(conversation, self.seed, mark),
        )

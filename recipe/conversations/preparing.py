"""From what a file holds to samples, one conversation at a time, with an account of everything that came in."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from recipe.conversations import splitting
from recipe.conversations.accounting import Account, Drop
from recipe.conversations.cleaning import clean, fingerprint
from recipe.conversations.formats import Conversation
from recipe.conversations.jsonstream import Rejected
from recipe.conversations.splitting import Sample


@dataclass
class Preparation:
    """Cleans, drops duplicates and splits. Memory grows by 32 bytes for each conversation kept, for the duplicates."""

    tokenizer: Any  # a fast transformers tokenizer
    template: str
    max_length: int  # tokens of a sample
    accounts: defaultdict[str, Account] = field(default_factory=lambda: defaultdict(Account))  # by source
    rejected: list[Rejected] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    def take(self, item: Conversation | Rejected) -> tuple[Conversation, list[Sample]] | None:
        """The clean conversation and its samples; None where nothing of it is kept. Either way it is accounted for."""
        account = self.accounts[item.source]
        if isinstance(item, Rejected):
            account.came(turns=0)
            account.dropped_conversations[item.reason] += 1
            self.rejected.append(item)
            return None
        account.came(len(item.messages))
        conversation = self._fit(item, account)
        return self._cut(conversation, account) if conversation else None

    def _fit(self, raw: Conversation, account: Account) -> Conversation | None:
        conversation, dropped = clean(raw)
        account.dropped_turns += dropped
        if not conversation.messages:
            account.dropped_conversations[Drop.NO_PAIR if raw.messages else Drop.EMPTY] += 1
            return None
        mark = fingerprint(conversation.messages)
        if mark in self._seen:
            account.dropped_conversations[Drop.DUPLICATE] += 1
            account.dropped_turns[Drop.IN_DUPLICATE] += len(conversation.messages)
            return None
        self._seen.add(mark)
        return conversation

    def _cut(self, conversation: Conversation, account: Account) -> tuple[Conversation, list[Sample]] | None:
        messages = conversation.messages
        samples, over_long = splitting.split(messages, self.tokenizer, self.template, self.max_length)
        account.dropped_turns[Drop.OVER_LONG_PAIR] += 2 * over_long
        if not samples:
            account.dropped_conversations[Drop.ALL_OVER_LONG] += 1
            account.dropped_turns[Drop.ORPHAN_SYSTEM] += len(messages) - 2 * over_long
            return None
        account.kept(len(messages) - 2 * over_long)
        return conversation, samples

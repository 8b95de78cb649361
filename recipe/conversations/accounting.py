"""What became of every conversation and turn: kept, or dropped for one reason from a fixed list."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Drop(StrEnum):
    """Why something is not in the corpus. The value is what a report shows."""

    # a whole record
    CUT_OFF = "the file ends inside the record"
    NOT_JSON = "broken JSON"
    NOT_UTF8 = "bytes that are not UTF-8"
    UNKNOWN_FORMAT = "a record in no known format"
    EMPTY = "a conversation without turns"
    NO_PAIR = "no question with an answer is left"
    DUPLICATE = "the same text as an earlier conversation"
    ALL_OVER_LONG = "every question with its answer is over the token limit"
    # a turn
    ODD_ROLE = "a role other than system, user, assistant"
    BLANK = "a blank turn, or one without text"
    STARTS_WITH_ASSISTANT = "an answer before the first question"
    UNASKED = "an answer whose question was dropped"
    UNANSWERED = "a question without an answer"
    MISPLACED_SYSTEM = "a system message after the start"
    ORPHAN_SYSTEM = "a system message of a dropped conversation"
    JOINED = "joined to the turn before it, which has the same role"
    REPEATED = "the same text and role as the turn before it"
    OVER_LONG_PAIR = "a question with its answer over the token limit"
    IN_DUPLICATE = "in a duplicate conversation"


@dataclass
class Account:
    """Of one source. Everything that came in was kept or has a reason: `balanced` holds at any time."""

    conversations: int = 0
    turns: int = 0
    kept_conversations: int = 0
    kept_turns: int = 0
    dropped_conversations: Counter[Drop] = field(default_factory=Counter)
    dropped_turns: Counter[Drop] = field(default_factory=Counter)

    def came(self, turns: int) -> None:
        """A conversation, or a record that is none, with so many turns."""
        self.conversations += 1
        self.turns += turns

    def kept(self, turns: int) -> None:
        """The conversation just counted is in the corpus, with so many of its turns."""
        self.kept_conversations += 1
        self.kept_turns += turns

    def balanced(self) -> bool:
        """Kept and dropped add up to what came, for conversations and for turns."""
        return (
            self.conversations == self.kept_conversations + self.dropped_conversations.total()
            and self.turns == self.kept_turns + self.dropped_turns.total()
        )

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, reasons by their short names."""
        return {
            "conversations": {
                "read": self.conversations,
                "kept": self.kept_conversations,
                "dropped": _by_name(self.dropped_conversations),
            },
            "turns": {"read": self.turns, "kept": self.kept_turns, "dropped": _by_name(self.dropped_turns)},
        }


def _by_name(counts: Counter[Drop]) -> dict[str, int]:
    return {reason.name.lower(): count for reason, count in sorted(counts.items()) if count}

"""The account of every conversation and turn: kept, or dropped for one reason from a fixed list."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

MOST_NAME, MOST_NAMES = 40, 50


class Drop(StrEnum):
    """Why something is not in the corpus. The value is what a report shows."""

    # a whole record
    CUT_OFF = "the file ends inside the record"
    NOT_JSON = "broken JSON"
    NOT_UTF8 = "bytes that are not UTF-8"
    UNKNOWN_FORMAT = "a record in no known format"
    AMBIGUOUS = "a record with two possible readings"
    TOO_LARGE = "a record over 64 MB"
    TOO_DEEP = "a record nested more than 200 levels deep"
    WRONG_CELLS = "a table row with broken quotes, or with another number of cells than the header"
    MARKED_BAD = "marked in the source as not for training"
    MEDIA = "a record with images, audio or video"
    EMPTY = "a conversation without turns"
    NO_PAIR = "no question with an answer is left"
    DUPLICATE = "the same text as an earlier conversation"
    NEAR_DUPLICATE = "nearly the same text as an earlier conversation"
    ALL_OVER_LONG = "every question with its answer exceeds the token limit"
    WRONG_ORDER = "roles out of turn"
    BLOCKED_WORD = "a blocked word"
    LANGUAGE = "a language that the config excludes"
    REPEATED_DIGITS = "one digit repeated over and over"
    CONTAMINATED = "contains an evaluation prompt"
    SAMPLED_OUT = "not in the sample taken of its source"
    UNTRAINED = "nothing of it is trained"
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
    OVER_LONG_PAIR = "a question with its answer that exceeds the token limit"
    IN_DUPLICATE = "in a duplicate conversation"
    IN_DROPPED = "in a conversation dropped as a whole"
    UNTRAINED_PAIR = "a question with an answer marked as not trained, in a sample without a trained answer"
    LATER_ROUND = "after the rounds that are kept"
    PASSED_OVER = "a further answer or branch of a record"
    UNRANKED = "a further answer of a record, none ranked above another"


class Change(StrEnum):
    """What was done to a turn, whether or not it was kept. The value is what a report shows."""

    MARKUP = "HTML became Markdown"
    LEFT_MARKUP = "HTML left as it was, since it is over a megabyte"
    REMNANT = "remnants of the web page removed"
    REPLACED = "a replacement rule applied"
    SCRIPT = "Chinese script converted"
    TRUNCATED = "an answer over the token limit cut at a line or sentence"


@dataclass
class Account:
    """The account of one source. Everything that came in was kept or has a reason: `balanced` holds at any time."""

    conversations: int = 0
    turns: int = 0
    kept_conversations: int = 0
    kept_turns: int = 0
    dropped_conversations: Counter[Drop] = field(default_factory=Counter)
    dropped_turns: Counter[Drop] = field(default_factory=Counter)
    changed_turns: Counter[Change] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)  # of the conversations kept
    unknown_roles: Counter[str] = field(default_factory=Counter)  # of turns, the names cut to `MOST_NAME` characters
    placeholders: Counter[str] = field(default_factory=Counter)  # {{name}} -> turns that contain it

    def came(self, turns: int) -> None:
        """Count a conversation with this many turns, or a record that is not a conversation."""
        self.conversations += 1
        self.turns += turns

    def kept(self, turns: int) -> None:
        """The conversation just counted is in the corpus, with this many of its turns."""
        self.kept_conversations += 1
        self.kept_turns += turns

    def dropped(self, reason: Drop, turns: int, turns_reason: Drop = Drop.IN_DROPPED) -> None:
        """The conversation just counted is not in the corpus, nor are those of its turns that had no reason yet."""
        self.dropped_conversations[reason] += 1
        self.dropped_turns[turns_reason] += turns

    def count_names(self, counter: Counter[str], names: Iterable[str]) -> None:
        """Count untrusted names: cut to `MOST_NAME` characters, at most `MOST_NAMES` different ones."""
        for name in names:
            name = name[:MOST_NAME]
            if name in counter or len(counter) < MOST_NAMES:
                counter[name] += 1

    def take_back(self, reason: Drop, turns_reason: Drop, turns: int, language: str) -> None:
        """A conversation counted as kept is dropped after all."""
        self.kept_conversations -= 1
        self.kept_turns -= turns
        self.languages[language] -= 1
        self.dropped(reason, turns, turns_reason)

    def add(self, other: "Account") -> None:
        """Add the account of other records of the same source."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def balanced(self) -> bool:
        """Whether kept and dropped add up to what came in, for conversations and for turns."""
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
            "turns": {
                "read": self.turns,
                "kept": self.kept_turns,
                "dropped": _by_name(self.dropped_turns),
                "changed": _by_name(self.changed_turns),
            },
            "languages": {name: count for name, count in self.languages.most_common() if name and count},
            "unknown_roles": dict(sorted(self.unknown_roles.items())),
            "placeholders": dict(sorted(self.placeholders.items())),
        }


def account(values: Mapping[str, Any]) -> Account:
    """The account that `Account.as_dict` returned as plain values."""
    conversations, turns = values["conversations"], values["turns"]
    return Account(
        conversations["read"],
        turns["read"],
        conversations["kept"],
        turns["kept"],
        Counter({Drop[name.upper()]: count for name, count in conversations["dropped"].items()}),
        Counter({Drop[name.upper()]: count for name, count in turns["dropped"].items()}),
        Counter({Change[name.upper()]: count for name, count in turns["changed"].items()}),
        Counter(values["languages"]),
        Counter(values["unknown_roles"]),
        Counter(values["placeholders"]),
    )


def _by_name(counts: Mapping[Any, int]) -> dict[str, int]:
    return {reason.name.lower(): count for reason, count in sorted(counts.items()) if count > 0}

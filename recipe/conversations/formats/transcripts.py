"""Layouts whose turns stand in one text, told apart by labels: hh-rlhf, Baize, MOSS, BELLE's multi-turn set."""

import re
from collections.abc import Iterator

from recipe.conversations.formats.records import Layout, Record
from recipe.conversations.messages import Dialogue, Message, text

_HH = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_BAIZE = re.compile(r"\[\|(Human|AI)\|\][ ]?")
_BELLE = re.compile(r"(?:\A|\n)(Human|Assistant)[:：][ ]?")
_MOSS = re.compile(r"\[(Human|MOSS)\]: ?|<\|(Human|MOSS)\|>: ?")
_MOSS_END = re.compile(r"\s*<eo[a-z]>\s*\Z")


def cut(transcript: str, label: re.Pattern[str]) -> list[Message]:
    """The turns between a transcript's labels, Human's being the user's; what stands before the first is no turn."""
    parts = label.split(transcript)
    groups = label.groups
    turns = []
    for at in range(1, len(parts), groups + 1):
        speaker = next(name for name in parts[at : at + groups] if name)
        turns.append(Message("user" if speaker == "Human" else "assistant", parts[at + groups].strip()))
    return turns


def hh_rlhf(record: Record) -> Iterator[Dialogue]:
    """The chosen transcript; of the rejected one only its last answer differs."""
    yield Dialogue(cut(record["chosen"], _HH), passed_over=int(isinstance(record.get("rejected"), str)))


def baize(record: Record) -> Iterator[Dialogue]:
    """A transcript ends with an empty label of the human's, which is no turn."""
    turns = cut(record["input"], _BAIZE)
    if turns and turns[-1] == Message("user", ""):
        turns.pop()
    yield Dialogue(turns)


def belle(record: Record) -> Iterator[Dialogue]:
    """Earlier turns stand in the instruction, which ends where the assistant is to go on."""
    turns = cut(record["instruction"], _BELLE)
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    yield Dialogue([*turns, Message("assistant", text(record["output"]))])


def is_belle(record: Record) -> bool:
    """Where the instruction begins as a transcript and asks the assistant to go on; otherwise it is Alpaca's layout."""
    instruction, answer = record.get("instruction"), record.get("output")
    if not (isinstance(instruction, str) and isinstance(answer, str)):
        return False
    return (
        instruction.startswith(("Human:", "Human：")) and re.search(r"\nAssistant[:：]\s*\Z", instruction) is not None
    )


def moss(record: Record) -> Iterator[Dialogue]:
    """MOSS 003 keeps its turns in fields, with labels inside; 002 keeps them all in one text.

    Inner thoughts, commands and tool results are not shown to a user and are no turns.
    """
    if isinstance(record.get("chat"), dict):
        numbered = sorted(record["chat"].items(), key=lambda turn: (len(turn[0]), turn[0]))
        sides = [turn.get(side, "") for _, turn in numbered if isinstance(turn, dict) for side in ("Human", "MOSS")]
        transcript = "".join(map(text, sides))
    else:
        transcript = record["plain_text"]
    turns = [Message(turn.role, _MOSS_END.sub("", turn.content)) for turn in cut(transcript, _MOSS)]
    system = text(record.get("meta_instruction")).strip()
    yield Dialogue([Message("system", system), *turns] if system else turns)


def is_moss(record: Record) -> bool:
    chat, plain = record.get("chat"), record.get("plain_text")
    return (isinstance(chat, dict) and "turn_1" in chat) or (isinstance(plain, str) and _MOSS.search(plain) is not None)


TRANSCRIPTS = {
    "hh-rlhf": Layout(
        '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
        lambda record: isinstance(record.get("chosen"), str) and _HH.search(record["chosen"]) is not None,
        hh_rlhf,
    ),
    "baize": Layout(
        '{"topic": "...", "input": "...[|Human|] ...[|AI|] ..."}',
        lambda record: isinstance(record.get("input"), str) and _BAIZE.search(record["input"]) is not None,
        baize,
    ),
    "belle": Layout('{"instruction": "Human: ...\\nAssistant:", "output": "..."}', is_belle, belle),
    "moss": Layout('{"chat": {"turn_1": {"Human": "<|Human|>: ...", "MOSS": "..."}}}', is_moss, moss),
}

"""Formats that keep all turns in one text with labels: hh-rlhf, Baize, MOSS, BELLE's multi-turn set, Guanaco, OIG."""

import re
from collections.abc import Iterator

from recipe.conversations.formats.base import Format, Record, are_strings, keys
from recipe.conversations.messages import Dialogue, Message, read_text

_HH = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_BAIZE = re.compile(r"\[\|(Human|AI)\|\][ ]?")
_BELLE = re.compile(r"(?:\A|\n)(Human|Assistant)[:：][ ]?")
_MOSS = re.compile(r"\[(Human|MOSS)\]: ?|<\|(Human|MOSS)\|>: ?")
_MOSS_END = re.compile(r"<eo[a-z]>\Z")
_GUANACO = re.compile(r"###[ ]?(Human|User|Assistant):[ ]?")
_OIG = re.compile(r"(?:\A|\n)<(human|bot)>:[ ]?")
_USER = re.compile(r"(?:\A|\n)(User|Assistant)[:：][ ]?")
_HUMANS = ("human", "user")
_ROLES = {**dict.fromkeys((*_HUMANS, "[inst]"), "user"), "system": "system"}  # any other label: the assistant
_TEXT_LABELS = (_GUANACO, _OIG)


def cut(transcript: str, label: re.Pattern[str]) -> list[Message]:
    """The turns between a transcript's labels; a text before the first label is left out."""
    parts = label.split(transcript)
    groups = label.groups
    turns = []
    for at in range(1, len(parts), groups + 1):
        speaker = next(name for name in parts[at : at + groups] if name)
        turns.append(Message(_ROLES.get(speaker.lower(), "assistant"), parts[at + groups].strip()))
    return turns


def cut_hh(prompt: str) -> list[Message]:
    """The turns of a prompt in hh-rlhf's form, which ends with an empty label of the assistant; [] for other text."""
    turns = cut(prompt, _HH) if _HH.match(prompt) else []
    return turns[:-1] if turns and turns[-1] == Message("assistant", "") else turns


def read_hh(record: Record) -> Iterator[Dialogue]:
    """The chosen transcript; the rejected one differs in its last answer only."""
    yield Dialogue(cut(record["chosen"], _HH), passed_over=int(isinstance(record.get("rejected"), str)))


def is_hh(record: Record) -> bool:
    chosen = record.get("chosen")
    return isinstance(chosen, str) and "Human:" in chosen and _HH.match(chosen) is not None and not record.get("prompt")


def read_baize(record: Record) -> Iterator[Dialogue]:
    """A transcript ends with an empty label of the human, which is not a turn."""
    turns = cut(record["input"], _BAIZE)
    if turns and turns[-1] == Message("user", ""):
        turns.pop()
    yield Dialogue(turns)


def read_belle(record: Record) -> Iterator[Dialogue]:
    """Earlier turns are in the instruction, which ends with the label of the answer."""
    turns = cut(record["instruction"], _BELLE)
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    yield Dialogue([*turns, Message("assistant", read_text(record["output"]))])


def is_belle(record: Record) -> bool:
    """Whether the instruction begins and ends as a transcript; otherwise it is Alpaca's format."""
    instruction, answer = record.get("instruction"), record.get("output")
    if not (isinstance(instruction, str) and isinstance(answer, str)):
        return False
    return (
        instruction.startswith(("Human:", "Human：")) and re.search(r"\nAssistant[:：]\s*\Z", instruction) is not None
    )


def read_guanaco(record: Record) -> Iterator[Dialogue]:
    """Earlier turns are in the instruction, the question is in the input, each with its label."""
    turns = cut("\n".join(text for text in (record["instruction"], record["input"]) if text), _USER)
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    yield Dialogue([*turns, Message("assistant", read_text(record["output"]))])


def is_guanaco(record: Record) -> bool:
    """Whether the instruction is a transcript; or where there is none, the input begins as one."""
    if not are_strings(record, "instruction", "input", "output"):
        return False
    earlier = record["instruction"]
    if not earlier.strip():
        return record["input"].startswith(("User:", "User："))
    return earlier.startswith(("User:", "User：")) and re.search(r"\nAssistant[:：]", earlier) is not None


def read_moss(record: Record) -> Iterator[Dialogue]:
    """MOSS 003 keeps its turns in fields, with labels inside; 002 keeps them all in one text.

    Inner thoughts, commands and tool results are not shown to a user and are not turns.
    """
    if isinstance(record.get("chat"), dict):
        numbered = sorted(record["chat"].items(), key=lambda turn: (len(turn[0]), turn[0]))
        sides = [turn.get(side, "") for _, turn in numbered if isinstance(turn, dict) for side in ("Human", "MOSS")]
        transcript = "".join(map(read_text, sides))
    else:
        transcript = record["plain_text"]
    turns = [Message(turn.role, _MOSS_END.sub("", turn.content).rstrip()) for turn in cut(transcript, _MOSS)]
    system = read_text(record.get("meta_instruction")).strip()
    yield Dialogue([Message("system", system), *turns] if system else turns)


def is_moss(record: Record) -> bool:
    chat, plain = record.get("chat"), record.get("plain_text")
    return (isinstance(chat, dict) and "turn_1" in chat) or (isinstance(plain, str) and _MOSS.search(plain) is not None)


def read_labels(record: Record) -> Iterator[Dialogue]:
    """`text` with Guanaco's or OIG's labels. A text before the first label is the system message."""
    label = _find_label(record["text"])
    assert label is not None
    turns = cut(record["text"], label)
    preamble = record["text"][: label.search(record["text"]).start()].strip()  # type: ignore[union-attr]  # it matches
    yield Dialogue([Message("system", preamble), *turns] if preamble else turns)


def _find_label(text: str) -> re.Pattern[str] | None:
    """The labels of which one asks and a later one answers."""
    for label in _TEXT_LABELS:
        found = label.search(text)
        if found and found[1].lower() in _HUMANS and len({name.lower() for name in label.findall(text)}) == 2:
            return label
    return None


TRANSCRIPTS = {
    "hh-rlhf": Format(
        '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
        keys("chosen"),
        is_hh,
        read_hh,
        specific=True,
    ),
    "baize": Format(
        '{"topic": "...", "input": "...[|Human|] ...[|AI|] ..."}',
        keys("input"),
        lambda record: isinstance(record.get("input"), str) and _BAIZE.search(record["input"]) is not None,
        read_baize,
        specific=True,
    ),
    "belle": Format(
        '{"instruction": "Human: ...\\nAssistant:", "output": "..."}',
        keys("instruction output"),
        is_belle,
        read_belle,
        specific=True,
    ),
    "guanaco": Format(
        '{"instruction": "User: ...\\nAssistant: ...", "input": "User: ...", "output": "..."}',
        keys("instruction input output"),
        is_guanaco,
        read_guanaco,
        specific=True,
    ),
    "moss": Format(
        '{"chat": {"turn_1": {"Human": "<|Human|>: ...", "MOSS": "..."}}}',
        keys("chat", "plain_text"),
        is_moss,
        read_moss,
        specific=True,
    ),
}
LABELLED = {
    "labelled-text": Format(
        '{"text": "### Human: ...### Assistant: ..."}',
        keys("text"),
        lambda record: isinstance(record.get("text"), str) and _find_label(record["text"]) is not None,
        read_labels,
    )
}

"""Preference pairs: an answer that was chosen and one that was rejected, beside a prompt or a list of turns."""

from collections.abc import Iterator
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.base import Format, Record, RefusedError, are_texts, keys, read_list
from recipe.conversations.formats.pair_lists import read_history
from recipe.conversations.formats.transcripts import cut_hh
from recipe.conversations.formats.turns import SYSTEM_KEYS, find_turns, read_context, read_system, read_turns
from recipe.conversations.messages import Dialogue, Message, alternate, join_texts

_CHOSEN = {
    "chosen": "rejected",
    "response_chosen": "response_rejected",
    "preferred_output": "non_preferred_output",
    "completion": "",
}
_PROMPTS = ("prompt", "instruction", "question", "query")
_READS = frozenset({*_PROMPTS, *SYSTEM_KEYS, "input", "history", "messages", "conversations"})


def read_preference(record: Record) -> Iterator[Dialogue]:
    """The prompt or the turns, then the chosen answer; the rejected answers are passed over."""
    record = _open_input(record)
    chosen, rejected = _find_chosen(record)
    answer = _read_answer(record[chosen])
    if answer[0].role == "assistant":
        answer = [*_end_before(_read_prompt(record), answer), *answer]
    elif (system := read_system(record)) and answer[0].role != "system":
        answer = [Message("system", system), *answer]
    yield Dialogue(answer, _count_answers(record.get(rejected)))


def is_preference(record: Record) -> bool:
    """Whether there is a chosen answer as a text, a turn or a list of turns, with something that it answers."""
    record = _open_input(record)
    chosen, _ = _find_chosen(record)
    try:
        answer = _read_answer(record[chosen]) if chosen else []
    except RefusedError:  # it is one, and reading it says why not
        return True
    if not answer:
        return False
    if answer[0].role != "assistant":
        return any(message.role == "assistant" for message in answer) and chosen != "completion"
    if chosen == "completion" and isinstance(record["completion"], str):
        return False  # a pair without a ranking
    return _has_prompt(record)


def _open_input(record: Record) -> Record:
    """OpenAI's preference records have the messages and tools in `input`."""
    return record | record["input"] if isinstance(record.get("input"), dict) else record


def _find_chosen(record: Record) -> tuple[str, str]:
    return next(((key, other) for key, other in _CHOSEN.items() if key in record), ("", ""))


def _read_answer(chosen: Any) -> list[Message]:
    """The chosen answer as messages; [] where it is not one."""
    chosen = read_list(chosen)
    if isinstance(chosen, str):
        return [Message("assistant", chosen)]
    turns = [chosen] if isinstance(chosen, dict) else chosen
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return []
    role_key = "from" if "from" in turns[0] else "role"
    return read_turns(turns, role_key) if role_key in turns[0] else []


def _has_prompt(record: Record) -> bool:
    prompt = next((read_list(record[key]) for key in _PROMPTS if record.get(key)), None)
    return isinstance(prompt, str) or _is_turns(prompt) or bool(find_turns(record))


def _is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and ("role" in value[0] or "from" in value[0])
    )


def _read_prompt(record: Record) -> list[Message]:
    if find_turns(record):
        return read_context(record)
    prompt = next(read_list(record[key]) for key in _PROMPTS if record.get(key))
    system = read_system(record)
    if isinstance(prompt, list):
        turns = _read_answer(prompt)
        return [Message("system", system), *turns] if system and turns[0].role != "system" else turns
    if turns := cut_hh(prompt):
        return turns
    question = alternate(join_texts(prompt, record.get("input")))
    return [*alternate(system=system), *read_history(record.get("history")), *question]


def _end_before(turns: list[Message], answer: list[Message]) -> list[Message]:
    """The turns up to the question. Raises RefusedError where they end with another answer than the chosen one."""
    while turns and turns[-1] == Message("assistant", ""):
        turns = turns[:-1]
    if turns and turns[-1].role == "assistant":
        if turns[-1].content != answer[0].content:
            raise RefusedError(Drop.AMBIGUOUS, "the turns end with an answer that differs from the chosen one")
        turns = turns[:-1]
    return turns


def _count_answers(rejected: Any) -> int:
    rejected = read_list(rejected)
    if are_texts(rejected):
        return len(rejected)
    return int(bool(rejected))


PREFERENCES = {
    "preference": Format(
        '{"prompt": "...", "chosen": "...", "rejected": "..."}',
        keys(*_CHOSEN),
        is_preference,
        read_preference,
        _READS,
        specific=True,
    )
}

"""Layouts of records with fields: each tells its own records from others and reads them into dialogues.

A turn of the wrong shape becomes a blank one, which `cleaning` drops and counts. Where a record ranks answers, the best
is taken and the others are counted as passed over.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from recipe.conversations.messages import Dialogue, Message, exchange, joined, role, text

Record = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How a record looks, how it is told from others, and how it is read."""

    shape: str
    matches: Callable[[Record], bool]
    dialogues: Callable[[Record], Iterable[Dialogue]]


TOOL_ROLES = {"function_call": "assistant", "observation": "user"}  # the model calls, the world answers


def sharegpt(record: Record) -> Iterator[Dialogue]:
    yield Dialogue([_turn(turn, "from", "value") for turn in record["conversations"]])


def is_sharegpt(record: Record) -> bool:
    return _is_list_of(record.get("conversations"), "from")


def sharegpt_tools(record: Record) -> Iterator[Dialogue]:
    """The tools' description goes into the system message; a call is an answer, and a result is asked with."""
    messages = [_turn(turn, "from", "value") for turn in record["conversations"]]
    messages = [Message(TOOL_ROLES.get(message.role, message.role), message.content) for message in messages]
    opening = [record.get("system", "")]
    if messages and messages[0].role == "system":
        opening.append(messages.pop(0).content)
    tools = text(record.get("tools"))
    described = f"You can call these tools, with JSON as your whole answer:\n{tools}" if _has_tools(tools) else ""
    system = joined(*opening, described)
    yield Dialogue([Message("system", system), *messages] if system else messages)


def is_sharegpt_tools(record: Record) -> bool:
    if not is_sharegpt(record):
        return False
    return isinstance(record.get("tools"), str) or any(
        isinstance(turn, dict) and turn.get("from") in tuple(TOOL_ROLES) for turn in record["conversations"]
    )


def _has_tools(tools: str) -> bool:
    try:
        return bool(json.loads(tools))
    except (ValueError, RecursionError):
        return bool(tools.strip())


def openai(record: Record) -> Iterator[Dialogue]:
    yield Dialogue([_turn(turn, "role", "content") for turn in record["messages"]])


def is_openai(record: Record) -> bool:
    return _is_list_of(record.get("messages"), "role")


def alpaca(record: Record) -> Iterator[Dialogue]:
    """`history` holds earlier (question, answer) pairs."""
    history = record.get("history")
    pairs = [pair for pair in history if isinstance(pair, (list, tuple))] if isinstance(history, list) else []
    before = [turn for pair in pairs for turn in (*pair, "", "")[:2]]
    question = joined(record["instruction"], record.get("input"))
    yield Dialogue(exchange(*before, question, record["output"], system=record.get("system")))


def ranked_alpaca(record: Record) -> Iterator[Dialogue]:
    """The answers best first in `output`, or as `chosen` and `rejected`."""
    answers = record["output"] if isinstance(record.get("output"), list) else [record["chosen"], record["rejected"]]
    question = joined(record["instruction"], record.get("input"))
    yield Dialogue(exchange(question, answers[0], system=record.get("system")), passed_over=len(answers) - 1)


def is_ranked_alpaca(record: Record) -> bool:
    if not _strings(record, "instruction"):
        return False
    ranked = record.get("output")
    return _strings(record, "chosen", "rejected") or (
        isinstance(ranked, list) and bool(ranked) and all(isinstance(answer, str) for answer in ranked)
    )


def firefly(record: Record) -> Iterator[Dialogue]:
    """Pairs in `conversation`, or one pair as `input` and `target` with its `kind`."""
    if "conversation" not in record:
        yield Dialogue(exchange(record["input"], record["target"]))
        return
    pairs = [pair if isinstance(pair, dict) else {} for pair in record["conversation"]]
    turns = [pair.get(side) for pair in pairs for side in ("human", "assistant")]
    yield Dialogue(exchange(*turns, system=record.get("system")))


def is_firefly(record: Record) -> bool:
    return _is_list_of(record.get("conversation"), "human") or _strings(record, "kind", "input", "target")


def dolly(record: Record) -> Iterator[Dialogue]:
    yield Dialogue(exchange(joined(record["instruction"], record["context"]), record["response"]))


def hc3(record: Record) -> Iterator[Dialogue]:
    """The first of ChatGPT's answers; the humans' and the others are passed over."""
    answers, human = record["chatgpt_answers"], record.get("human_answers")
    over = max(0, len(answers) - 1) + (len(human) if isinstance(human, list) else 0)
    yield Dialogue(exchange(record["question"], answers[0] if answers else ""), passed_over=over)


def lima(record: Record) -> Iterator[Dialogue]:
    yield Dialogue(exchange(*record["conversations"]))


def ultrachat(record: Record) -> Iterator[Dialogue]:
    yield Dialogue(exchange(*record["data"]))


def self_instruct(record: Record) -> Iterator[Dialogue]:
    """A task with instances, each a dialogue; or a `prompt` with its `completion`."""
    if "completion" in record:
        yield Dialogue(exchange(record["prompt"], record["completion"]))
        return
    for instance in record["instances"]:
        instance = instance if isinstance(instance, dict) else {}
        yield Dialogue(exchange(joined(record["instruction"], instance.get("input")), instance.get("output")))


def is_self_instruct(record: Record) -> bool:
    return _strings(record, "prompt", "completion") or (
        _strings(record, "instruction") and _is_list_of(record.get("instances"), "output")
    )


def dialogstudio(record: Record) -> Iterator[Dialogue]:
    turns = [turn if isinstance(turn, dict) else {} for turn in record["log"]]
    yield Dialogue(exchange(*(turn.get(side) for turn in turns for side in ("user utterance", "system response"))))


def crosswoz(record: Record) -> Iterator[Dialogue]:
    sides = {"usr": "user", "sys": "assistant"}
    turns = [_turn(turn, "role", "content") for turn in record["messages"]]
    yield Dialogue([Message(sides.get(turn.role, turn.role), turn.content) for turn in turns])


def is_crosswoz(record: Record) -> bool:
    return is_openai(record) and any(
        isinstance(turn, dict) and turn.get("role") == "usr" for turn in record["messages"]
    )


def belle_eval(record: Record) -> Iterator[Dialogue]:
    yield Dialogue(exchange(record["question"], record["std_answer"]))


def _turn(turn: Any, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, dict):
        return Message("", "")
    return Message(role(turn.get(role_key)), text(turn.get(text_key)))


def _strings(record: Record, *keys: str) -> bool:
    return all(isinstance(record.get(key), str) for key in keys)


def _is_list_of(value: Any, key: str) -> bool:
    """A list of turns; an empty one too, since real dumps hold conversations without turns."""
    return isinstance(value, list) and (not value or any(isinstance(turn, dict) and key in turn for turn in value))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)


# The first that matches reads a record, so what is told by more stands before what is told by less.
LAYOUTS = {
    "sharegpt-tools": Layout(
        '{"conversations": [{"from": "function_call", ...}, ...], "tools": "[...]"}', is_sharegpt_tools, sharegpt_tools
    ),
    "sharegpt": Layout('{"conversations": [{"from": "human", "value": "..."}, ...]}', is_sharegpt, sharegpt),
    "crosswoz": Layout('{"7": {"messages": [{"role": "usr", "content": "..."}, ...]}}', is_crosswoz, crosswoz),
    "messages": Layout('{"messages": [{"role": "user", "content": "..."}, ...]}', is_openai, openai),
    "lima": Layout(
        '{"conversations": ["question", "answer", ...]}', lambda record: _is_texts(record.get("conversations")), lima
    ),
    "ultrachat": Layout(
        '{"data": ["question", "answer", ...]}', lambda record: _is_texts(record.get("data")), ultrachat
    ),
    "firefly": Layout('{"kind": "...", "input": "...", "target": "..."}', is_firefly, firefly),
    "ranked-alpaca": Layout(
        '{"instruction": "...", "input": "", "output": ["best", "worse"]}', is_ranked_alpaca, ranked_alpaca
    ),
    "alpaca": Layout(
        '{"instruction": "...", "input": "...", "output": "..."}',
        lambda record: _strings(record, "instruction", "output"),
        alpaca,
    ),
    "dolly": Layout(
        '{"instruction": "...", "context": "...", "response": "..."}',
        lambda record: _strings(record, "instruction", "context", "response"),
        dolly,
    ),
    "hc3": Layout(
        '{"question": "...", "human_answers": [...], "chatgpt_answers": [...]}',
        lambda record: _strings(record, "question") and isinstance(record.get("chatgpt_answers"), list),
        hc3,
    ),
    "self-instruct": Layout(
        '{"instruction": "...", "instances": [{"input": "", "output": "..."}]}', is_self_instruct, self_instruct
    ),
    "dialogstudio": Layout(
        '{"log": [{"user utterance": "...", "system response": "..."}]}',
        lambda record: _is_list_of(record.get("log"), "user utterance"),
        dialogstudio,
    ),
    "belle-eval": Layout(
        '{"question": "...", "std_answer": "..."}',
        lambda record: _strings(record, "question", "std_answer"),
        belle_eval,
    ),
}

"""Tool calls as text: the tools are described in the system message, a call is an answer, its result a user turn."""

import json
from itertools import pairwise
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.base import Record, RefusedError, read_json
from recipe.conversations.messages import Message, join_texts, read_text

CALL_ROLES = ("function_call", "function-call", "tool_call", "tool_calls")
RESULT_ROLES = ("observation", "tool", "function", "function_response", "function-response", "tool_response", "ipython")
TOOL_ROLES = {**dict.fromkeys(CALL_ROLES, "assistant"), **dict.fromkeys(RESULT_ROLES, "user")}
_INTRODUCTION = "You can call these tools, with JSON as your whole answer:\n"


def describe(tools: Any) -> str:
    """The text that tells the model of its tools, "" for none: a description, a list of them, or that as JSON text."""
    text = read_text(tools) if isinstance(tools, str) else ""
    tools = [tools] if isinstance(tools, dict) else tools
    if isinstance(tools, list) and tools:
        text = _dump([_unwrap(tool) for tool in tools])
    return _INTRODUCTION + text if _holds_tools(text) else ""


def _holds_tools(text: str) -> bool:
    try:
        return bool(json.loads(text))
    except (ValueError, RecursionError):
        return text.strip().lower() not in ("", "none", "n/a")


def read_calls(turn: Record) -> str:
    """OpenAI's `tool_calls` (or the older `function_call`) as JSON: one call as an object, several as a list."""
    calls = turn.get("tool_calls") or turn.get("function_call")
    calls = read_json(calls) or calls if isinstance(calls, str) else calls
    return _dump_calls([_read_call(call) or call for call in (calls if isinstance(calls, list) else [calls])])


def read_blocks(parts: list[Any]) -> str:
    """The text of a turn's parts; Anthropic's `tool_use` and `tool_result` blocks as OpenAI's calls and results."""
    blocks = [part for part in parts if isinstance(part, dict) and part.get("type") in ("tool_use", "tool_result")]
    if not blocks:
        return read_text(parts)
    results = [read_result(part.get("content")) for part in blocks if part["type"] == "tool_result"]
    uses = [part for part in blocks if part["type"] == "tool_use"]
    calls = [{"name": part.get("name"), "arguments": part.get("input")} for part in uses]
    return join_texts(*results, read_text(parts), _dump_calls(calls))


def _dump_calls(calls: list[Any]) -> str:
    return _dump(calls[0] if len(calls) == 1 else calls) if calls else ""


def read_call_with_result(turn: Record) -> list[Message]:
    """ChatGLM3's tool turn, which holds a call and its result."""
    call = {"name": turn.get("name"), "arguments": turn.get("parameters")}
    return [Message("assistant", _dump(call)), Message("user", read_result(turn.get("observation")))]


def read_result(result: Any) -> str:
    """A tool's result: text or typed parts of text as they are, any other value as JSON."""
    text = "" if isinstance(result, dict) else read_text(result)
    return text if text or not result else _dump(result)


def _read_call(call: Any) -> Record | None:
    function = _unwrap(call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    return {"name": function["name"], "arguments": _read_arguments(function.get("arguments"))}


def _unwrap(tool: Any) -> Any:
    """OpenAI wraps a function as {"type": "function", "function": {...}}."""
    return tool["function"] if isinstance(tool, dict) and isinstance(tool.get("function"), dict) else tool


def _read_arguments(arguments: Any) -> Any:
    """OpenAI gives a call's arguments as JSON text."""
    if not isinstance(arguments, str):
        return arguments
    decoded = read_json(arguments)
    return arguments if decoded is None else decoded


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def with_tools(messages: list[Message], system: str, tools: Any) -> list[Message]:
    """The messages with tool roles renamed, and one system message: `system`, their own, the tools' description.

    Raises RefusedError for a result behind a blank answer: without its call it would pass for a question.
    """
    for before, item in pairwise(messages):
        is_call = before.role in ("assistant", *CALL_ROLES)
        if item.role in RESULT_ROLES and is_call and not before.content.strip():
            raise RefusedError(Drop.UNKNOWN_FORMAT, "a tool's result without the call before it")
    messages = [Message(TOOL_ROLES.get(item.role, item.role), item.content, item.trained) for item in messages]
    opening = [system]
    if messages and messages[0].role == "system":
        own = messages.pop(0).content
        opening += [own] if own != system else []
    text = join_texts(*opening, describe(tools))
    return [Message("system", text), *messages] if text else messages

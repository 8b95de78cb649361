"""`text` that a chat template has rendered already: ChatML, Llama 3, Zephyr, Llama 2. It becomes turns again."""

import re
from collections.abc import Iterator
from dataclasses import replace

from recipe.conversations.formats.base import Format, Record, keys
from recipe.conversations.formats.transcripts import cut
from recipe.conversations.messages import Dialogue, Message

# What opens a turn -> what ends it.
_LABELS = {
    re.compile(r"<\|im_start\|>(system|user|assistant)\n"): "<|im_end|>",
    re.compile(r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>\n\n"): "<|eot_id|>",
    re.compile(r"<\|(system|user|assistant)\|>\n"): "</s>",
    re.compile(r"(?:<s>)?(\[/?INST\])"): "</s>",
}
_BEGIN = ("", "<|begin_of_text|>", "<s>")
_SYSTEM = re.compile(r"<<SYS>>\n(.*?)\n<</SYS>>\n\n", re.S)  # Llama 2's system message, in the first question


def read_rendered(record: Record) -> Iterator[Dialogue]:
    label = _find_label(record["text"])
    assert label is not None
    end = _LABELS[label]
    turns = [replace(turn, content=turn.content.removesuffix(end).strip()) for turn in cut(record["text"], label)]
    if system := _SYSTEM.match(turns[0].content):
        turns = [Message("system", system[1]), replace(turns[0], content=turns[0].content[system.end() :]), *turns[1:]]
    yield Dialogue(turns[:-1] if turns[-1] == Message("assistant", "") else turns)


def is_rendered(record: Record) -> bool:
    return isinstance(record.get("text"), str) and _find_label(record["text"]) is not None


def _find_label(text: str) -> re.Pattern[str] | None:
    """The labels that the text begins with, where both a question and an answer are labelled."""
    if "<|" not in text and "[INST]" not in text:
        return None
    for label in _LABELS:
        found = label.search(text)
        if found and text[: found.start()].strip() in _BEGIN and len({*label.findall(text)} - {"system"}) == 2:
            return label
    return None


RENDERED = {
    "rendered-text": Format(
        '{"text": "<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>"}',
        keys("text"),
        is_rendered,
        read_rendered,
    )
}

"""What a record or a turn says of itself: marked as not for training, or with images, audio or video."""

import re
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.base import Record, RefusedError
from recipe.conversations.messages import TEXT_PARTS
from recipe.core.text import snippet

_RECORD_MARKS = ("kto_tag", "label", "train", "weight", "loss_weight")
_KINDS = ("image", "video", "audio")
_MEDIA = frozenset(kind + plural for kind in _KINDS for plural in ("", "s"))
# A text may come with the address of a picture; only a placeholder in it says that the picture is asked about.
_MEDIA_LINKS = frozenset(f"{kind}_{what}" for kind in _KINDS for what in ("path", "paths", "url", "urls", "file"))
_PLACEHOLDER = re.compile(f"<(?:{'|'.join(_KINDS)})>")
_CHECKED = frozenset({*_RECORD_MARKS, *_MEDIA, *_MEDIA_LINKS})
_MEDIA_PARTS = frozenset({*_KINDS, "image_url", "input_image", "audio_url", "input_audio", "video_url", "file"})
_MEDIA_PARTS |= {"image_file", "input_file", "document", "inline_data", "inlineData", "file_data", "fileData"}
_OTHER_PARTS = (*TEXT_PARTS, "tool_use", "tool_result", "thinking", "redacted_thinking", "reasoning")
_OFF = ("weight", "loss_weight", "loss", "loss_mask", "train", "training", "train_on_turn")  # 0, false: without a loss
_MASKED = ("masked", "mask")  # 1 or true: without a loss


def refuse_marked(record: Record) -> None:
    """Raises RefusedError for a record that is marked as bad (KTO), or that has images, audio or video."""
    if _CHECKED.isdisjoint(record):
        return
    for key in _RECORD_MARKS:
        mark = record.get(key)
        if mark is False or (is_off(mark) and (key != "label" or str(mark).strip().lower() == "false")):
            raise RefusedError(Drop.MARKED_BAD, f"its {key} is {snippet(mark, 20)}")
    refuse_media(record, "it")


def refuse_media(record: Record, what: str) -> None:
    """Raises RefusedError where a record or a turn has images, audio or video in a field of its own."""
    for key in _MEDIA.intersection(record):
        if record[key]:
            raise RefusedError(Drop.MEDIA, f"{what} has {key}")
    for key in _MEDIA_LINKS.intersection(record):
        if record[key] and (found := _PLACEHOLDER.search(repr(record))):
            raise RefusedError(Drop.MEDIA, f"{what} has {key} and {found[0]}")


def check_parts(parts: list[Any]) -> None:
    """Raises RefusedError for an image, sound or video among a turn's parts, and for a part of an unknown kind: the
    text alone would mean something else."""
    for part in parts:
        if not isinstance(part, dict):
            continue
        kinds = {part["type"]} if isinstance(part.get("type"), str) else {key for key in part if part[key] is not None}
        if media := _MEDIA_PARTS & kinds:
            raise RefusedError(Drop.MEDIA, f"a turn with a part of type {min(media)!r}")
        if kinds.isdisjoint((*_OTHER_PARTS, "value", "content")):
            raise RefusedError(Drop.UNKNOWN_FORMAT, f"a turn with a part of type {snippet(', '.join(sorted(kinds)))!r}")
        if part.get("type") == "tool_result" and isinstance(part.get("content"), list):
            check_parts(part["content"])


def is_trained(turn: Record) -> bool:
    """Whether nothing in the turn says that it is without a loss: OpenAI's `weight: 0`, axolotl's `train: false`."""
    if any(is_off(turn.get(key)) for key in _OFF) or any(_is_on(turn.get(key)) for key in _MASKED):
        return False
    detail = turn.get("train_detail")  # axolotl: ranges of the text; a turn is trained as a whole or not at all
    return not (
        isinstance(detail, list) and any(isinstance(item, dict) and is_off(item.get("train")) for item in detail)
    )


def is_off(value: Any) -> bool:
    """Whether `value` is false or 0, or the text of that, as in CSV files."""
    if isinstance(value, str):
        return value.strip().lower() in ("false", "0", "0.0")
    return isinstance(value, (bool, int, float)) and value == 0


def _is_on(value: Any) -> bool:
    return value in (1, True) or (isinstance(value, str) and value.strip().lower() in ("true", "1"))

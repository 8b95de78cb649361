"""Limits on a single record, so that memory does not follow what one record contains."""

from collections.abc import Iterable, Iterator
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers.json_stream import LARGEST_RECORD, Record, Rejected

DEEPEST = 100  # lists and objects inside one another; no published layout needs a tenth of it


def enforce(records: Iterable[Record | Rejected], source: str) -> Iterator[Record | Rejected]:
    """The records; those that are nested too deeply or too large (a table's rows) as `Rejected`."""
    for record in records:
        if isinstance(record, Rejected):
            yield record
        elif is_deep(record.value):
            detail = f"lists and objects are nested more than {DEEPEST} deep"
            yield Rejected(source, record.offset, Drop.TOO_DEEP, detail, "", record.size)
        elif not record.size and (size := weigh(record.value)) > LARGEST_RECORD:
            detail = f"about {size:,} characters, expected at most {LARGEST_RECORD:,}"
            yield Rejected(source, record.offset, Drop.TOO_LARGE, detail)
        else:
            yield record


def is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than `DEEPEST` deep; level by level, without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item) if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def weigh(value: Any) -> int:
    """About how many characters a value has: those of its texts, and a few for everything else."""
    total, level = 0, [value]
    while level:
        total += sum(len(item) if isinstance(item, str) else 8 for item in level)
        level = [child for item in level if isinstance(item, (dict, list)) for child in _children(item)]
    return total


def _children(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item

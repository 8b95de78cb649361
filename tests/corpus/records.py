"""Raw conversations to prepare, and prepared samples."""

import json
from pathlib import Path


def sharegpt(number: int, pairs: int = 2, length: int = 40) -> dict:
    turns = [
        {"from": ("human", "gpt")[index % 2], "value": f"{number} {index} " + "word " * (length // 5)}
        for index in range(2 * pairs)
    ]
    return {"id": f"c{number}", "conversations": turns}


def samples(folder: Path, part: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def inline(sources: list[dict]) -> str:
    """`[[corpus.source]]` tables as one TOML value, for --set."""
    tables = (", ".join(f"{key} = {json.dumps(value)}" for key, value in source.items()) for source in sources)
    return "[" + ", ".join(f"{{{table}}}" for table in tables) + "]"

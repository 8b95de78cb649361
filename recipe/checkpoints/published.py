"""Checkpoints whose hashes are known (docker/pins.toml, `[[checkpoint]]`): is this one of them?"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

PINS = Path(__file__).parents[2] / "docker" / "pins.toml"


class Origin(NamedTuple):
    """The name of the published checkpoint, empty if none matches, and one sentence for a person."""

    name: str
    sentence: str


def compare(hashes: Mapping[str, str], pins: Path = PINS) -> Origin:
    """Which published checkpoint has these files; `hashes` maps a file name to its sha256.

    The tokenizer alone proves nothing: all models of one family share it.
    """
    known = _checkpoints(pins)
    for checkpoint in known:
        pinned = checkpoint["sha256"]
        wrong = [file for file, sha256 in pinned.items() if hashes.get(file) != sha256]
        same = pinned.keys() - wrong - {"tokenizer.model"}
        if same and not wrong:
            return Origin(checkpoint["name"], f"the files are those of the published {checkpoint['name']}")
        if same:
            return Origin(
                "", f"{wrong[0]} is not that of the published {checkpoint['name']}, though {min(same)} is: check it"
            )
    names = ", ".join(checkpoint["name"] for checkpoint in known)
    return Origin("", f"the hashes are not those of a checkpoint known here ({names}): the manifest is the pin")


def _checkpoints(pins: Path) -> list[dict[str, Any]]:
    if not pins.is_file():
        return []
    return tomllib.loads(pins.read_text(encoding="utf-8")).get("checkpoint", [])

"""How a folder of weights is asked: the chat template in tokenizer_config.json, the end tokens of a generation."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipe.checkpoints.files import read_object


def add_chat_template(folder: Path, chat_template: str | None) -> None:
    """Put a Jinja chat template into the folder's tokenizer_config.json, as transformers and vLLM read it."""
    if chat_template is not None:
        _change(folder / "tokenizer_config.json", chat_template=chat_template)


def add_end_tokens(folder: Path, token_ids: Iterable[int]) -> None:
    """Let a generation end at these tokens too: the end mark of a template need not be the tokenizer's EOS."""
    path = folder / "generation_config.json"
    ends = read_object(path).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if missing := [token_id for token_id in token_ids if token_id not in ends]:
        _change(path, eos_token_id=[*ends, *missing])


def _change(path: Path, **settings: Any) -> None:
    """Written as transformers writes it: sorted keys, two spaces."""
    text = json.dumps({**read_object(path), **settings}, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")

"""The chat template in a folder that leaves the project: a merged model or an adapter."""

import json
from pathlib import Path
from typing import Any

from recipe.conversations import templates
from recipe.conversations.tokens import begins_with_bos, check_template
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file

CONFIG = "tokenizer_config.json"
MARKED_FILE = "chat_template_generation.jinja"  # no program reads it by itself
SEPARATE_FILE = "chat_template.jinja"  # newer transformers prefer it to the entry in tokenizer_config.json


def write_chat_template(folder: Path, name: str) -> str:
    """Put the template into the tokenizer_config.json of a folder with a tokenizer; the Jinja text.

    Any other chat template of the folder is removed. Raises RecipeError: no tokenizer in the folder, or one without
    the template's special tokens.
    """
    config = _read(folder / CONFIG)
    tokenizer = _load(folder)
    check_template(tokenizer, name)
    config["chat_template"] = templates.chat_template(name, bos=begins_with_bos(tokenizer))
    with atomic_file(folder / CONFIG) as file:
        file.write(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    (folder / SEPARATE_FILE).unlink(missing_ok=True)
    return config["chat_template"]


def write_marked_template(folder: Path, name: str) -> None:
    """Write the template with `{% generation %}` marks beside the tokenizer, for those who train on.

    With it `apply_chat_template(..., return_assistant_tokens_mask=True)` of transformers masks what is trained here.
    """
    text = templates.chat_template(name, generation=True, bos=begins_with_bos(_load(folder)))
    (folder / MARKED_FILE).write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise RecipeError(f"{path} is absent or not a JSON object; expected a tokenizer: write it before the template")
    return config


def _load(folder: Path) -> Any:
    """The tokenizer as other programs load it: by the class that its config names."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

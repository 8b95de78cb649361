"""Open a checkpoint of any known kind, detected by the files in its folder."""

import re
from pathlib import Path

from recipe.checkpoints import gguf, hf, meta
from recipe.checkpoints.source import Source
from recipe.core.errors import RecipeError

LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")  # of a split GGUF
EXPECTED = (
    "a folder with consolidated.*.pth and params.json (Meta), with config.json and .safetensors or .bin "
    "(Hugging Face), or a .gguf file"
)


def open_source(path: Path) -> Source:
    """The checkpoint at `path`, of whatever kind. Raises RecipeError if its kind is not known."""
    if path.is_file() and path.suffix == ".gguf":
        return gguf.open_source(path)
    if not path.is_dir():
        raise RecipeError(f"{path} {'is not a checkpoint' if path.exists() else 'does not exist'}: expected {EXPECTED}")
    if any(path.glob(meta.SHARDS)):
        return meta.open_source(path)
    if hf.is_folder(path):
        return hf.open_source(path)
    files = [file for file in sorted(path.glob("*.gguf")) if not LATER_SHARD.search(file.name)]
    if len(files) == 1:
        return gguf.open_source(files[0])
    if files:
        raise RecipeError(f"{path} holds {len(files)} .gguf files: name one of them, such as --source {files[0]}")
    raise RecipeError(f"{path} holds no checkpoint: expected {EXPECTED}")

"""An engine from a run, or from a folder of weights."""

from pathlib import Path
from typing import Any

from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST
from recipe.core.manifest import read_manifest
from recipe.core.run import Run

TEMPLATE = "vicuna_v1.1"  # for a folder whose manifest names none


def open_engine(config: Config, run: Run) -> Any:
    """Base and tuned model of a finished run. Raises RecipeError where a file of the run or its base was altered."""
    from recipe.model.open import open_run
    from recipe.serving.engine import Engine

    opened = open_run(run, config)
    return Engine(opened.model, opened.tokenizer, opened.template)


def open_folder(folder: Path, precision: str) -> Any:
    """The one model of a merged or converted folder. Raises RecipeError if a file is missing or altered."""
    from recipe.model.load import default_device, load_cached, load_tokenizer, verify_base
    from recipe.serving.engine import Engine

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected one that recipe.merge or recipe.convert wrote")
    if not (folder / MANIFEST).is_file():
        raise RecipeError(
            f"{folder} has no {MANIFEST}, so its files cannot be verified; expected a folder that recipe.merge or "
            "recipe.convert wrote: convert a folder of Hugging Face first"
        )
    copy = verify_base(folder, precision)
    template = read_manifest(folder)["config"].get("template", TEMPLATE)
    model = load_cached(folder, precision, default_device(), copy)
    return Engine(model, load_tokenizer(folder), template, models=("model",))

"""An engine from a run, or from a folder of weights."""

from pathlib import Path
from typing import Any

from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST
from recipe.core.manifest import check_inputs, check_intact, read_manifest
from recipe.core.run import Run

TEMPLATE = "vicuna_v1.1"  # for a folder whose manifest names none


def open_engine(config: Config, run: Run) -> Any:
    """Base and tuned model of a finished run. Raises RecipeError where a file of the run or its base was altered."""
    from recipe.model.adapter import load_adapter
    from recipe.model.load import default_device, load_base, load_tokenizer
    from recipe.serving.engine import Engine

    if not run.manifest_file.is_file():
        raise RecipeError(
            f"{run.folder} has no {MANIFEST}, so its training did not finish; run the same `make train` again"
        )
    base = Path(config.base.path)
    check_intact(run.folder)
    check_inputs(run.folder, {"base": base})
    tuned = load_adapter(load_base(base, config.base.precision, default_device()), run.adapter)
    return Engine(tuned, load_tokenizer(base), config.corpus.template)


def open_folder(folder: Path, precision: str, template: str = "") -> Any:
    """The one model of a merged or converted folder. Raises RecipeError where a file of it was altered."""
    from recipe.model.load import default_device, load_base, load_tokenizer
    from recipe.serving.engine import Engine

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected one that recipe.merge or recipe.convert wrote")
    if (folder / MANIFEST).is_file():
        check_intact(folder)
        template = template or read_manifest(folder)["config"].get("template", "")
    model = load_base(folder, precision, default_device())
    return Engine(model, load_tokenizer(folder), template or TEMPLATE, models=("model",))

"""Open a finished run: base, adapter, tokenizer and template together, each verified."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.core.config import Config
from recipe.core.manifest import check_inputs, check_intact
from recipe.core.run import Run
from recipe.model.adapter import load_adapter
from recipe.model.load import default_device, load_cached, load_tokenizer, split_devices, verify_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TunedModel:
    """A run's base with its adapter, in eval mode, and what its prompts are made with."""

    model: "PeftModel"
    tokenizer: "PreTrainedTokenizerFast"
    template: str


def open_run(run: Run, config: Config) -> TunedModel:
    """The tuned model of a finished run; `config` is the run's own, with overrides.

    Raises RecipeError if the run is not finished, its adapter or base was altered, or the base is another one.
    """
    base, precision, device = Path(config.base.path), config.base.precision, default_device()
    check_intact(run.folder)
    check_inputs(run.folder, {"base": base})
    copy = verify_base(base, precision)
    tokenizer = load_tokenizer(base)
    model = load_cached(base, precision, split_devices(device, config.base.split), copy)
    return TunedModel(load_adapter(model, run.adapter), tokenizer, config.corpus.template)

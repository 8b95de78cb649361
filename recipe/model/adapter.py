"""The LoRA adapter: added, loaded, checked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from recipe.core.config import Lora
from recipe.core.errors import RecipeError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

ADAPTER_FILE = "adapter_model.safetensors"


def add_adapter(model: "LlamaForCausalLM", lora: Lora, seed: int) -> "PeftModel":
    """A fresh LoRA adapter on `model`, in fp32. The seed is set here, before A is drawn; B starts at zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    # of the decoder's layers: the loss reads lm_head's weight, so an adapter on it would be passed over
    modules = model.model.layers.named_modules()
    known = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    unknown = set(lora.target_modules) - known
    if unknown:
        raise RecipeError(f"lora.target_modules: a layer has no {min(unknown)}, it has {', '.join(sorted(known))}")
    set_seed(seed)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def load_adapter(model: "LlamaForCausalLM", path: Path) -> "PeftModel":
    """A trained adapter on `model`, for inference."""
    from peft import PeftModel

    check_adapter(path)
    return PeftModel.from_pretrained(model, str(path)).eval()


def check_adapter(path: Path, trained: bool = True) -> dict[str, torch.Tensor]:
    """The adapter's tensors, once it is sure that it was really trained and really saved.

    Raises RecipeError: no file, an A without its B, a value that is not finite, or every B zero, as in the empty
    adapters that old recipes leave after days (a B of zeros is a LoRA that does nothing; with `trained=False` it may,
    since warm-up begins with a step of learning rate 0).
    """
    from safetensors.torch import load_file

    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        raise RecipeError(f"{path} holds no {ADAPTER_FILE}: the run did not finish; `make train` goes on with it")
    tensors = load_file(file)
    settings = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    lacking = [module for module in settings["target_modules"] if not any(f".{module}." in name for name in tensors)]
    pairs = {name.replace(".lora_A.", ".lora_B.") for name in tensors}
    if not tensors or lacking or not pairs <= tensors.keys() or len(tensors) != 2 * len(pairs):
        what = f"nothing for {lacking[0]}" if lacking else "an A without its B"
        raise RecipeError(f"{file} is not a whole adapter ({what} in {len(tensors)} tensors); train again")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RecipeError(f"{file}: {name} holds inf or NaN; lower train.learning_rate and train again")
    if trained and all(tensor.eq(0).all() for name, tensor in tensors.items() if ".lora_B." in name):
        raise RecipeError(f"{file}: every B is zero, so this adapter changes nothing; it was not trained")
    return tensors
